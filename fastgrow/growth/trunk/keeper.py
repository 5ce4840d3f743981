"""The rows that are kept from stage to stage: found, placed, filled, compared, let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastgrow.errors import CheckpointError
from fastgrow.growth.trunk.choice import StageLoad
from fastgrow.growth.trunk.costs import Costs, free_bytes, measure_costs
from fastgrow.growth.trunk.disk import DiskStore, headers, remove_caches
from fastgrow.growth.trunk.frozen import Difference, FrozenTrunk
from fastgrow.growth.trunk.key import Identity, can_advance, identity
from fastgrow.growth.trunk.placing import Plan, Room, choose, megabytes
from fastgrow.growth.trunk.rows import Filler, TrunkRows
from fastgrow.growth.trunk.settings import Trunk
from fastgrow.growth.trunk.store import DamagedRows, MemoryStore, RowStore

Say = Callable[..., None]


class RowKeeper:
    """Gives each stage its rows, or says why it has none.

    Args:
        settings: the user's.
        folder: for files, this run's own.
        say: takes a text and values for the log.
        make_room: told, before rows are made, the bytes that all rows will then take.

    Attributes:
        places: where each stage keeps its rows (None: it does not), by its number.
    """

    def __init__(
        self,
        settings: Trunk,
        folder: Path,
        say: Say,
        make_room: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.settings = settings
        self.places: dict[str, str | None] = {}
        self._folder = folder
        self._say = say
        self._make_room = make_room
        self._kept: TrunkRows | None = None
        self._costs: Costs | None = None

    @property
    def nbytes(self) -> int:
        """Of what is kept now."""
        return 0 if self._kept is None else self._kept.store.nbytes

    def rows(
        self, stage: int, loads: Sequence[StageLoad], filler: Filler, digests: Sequence[str]
    ) -> TrunkRows | None:
        """A row for every window that the stage reads; None where recomputing is better.

        Args:
            stage: its number.
            loads: of this stage and those after it.
            filler: computes rows by the stage's trunk.
            digests: of the trunk's weights at every depth.
        """
        trunk, batches = filler.trunk, filler.batches
        windows = batches.windows_of(round(loads[0].reads))
        loads = [replace(loads[0], rows=float(filler.micro_batches(windows))), *loads[1:]]
        wanted = identity(trunk, digests[trunk.n], batches, windows)
        pinned = trunk.model.device.type == "cuda"
        old = self._at_hand(wanted, digests, pinned=pinned)
        if old is not None and old.identity == wanted and old.store.nbytes <= self.settings.limit:
            self.places[str(stage)] = old.store.place
            self._say(f"{_described(old)}, found again", cache=old.store.place)
            return old
        if old is not None and old.store.nbytes > self.settings.limit:
            # The run was begun with a higher limit.
            self.forget()
            old = None
        example = _example(trunk, filler)
        plan = self._plan(stage, loads, trunk, example, windows, old)
        self.places[str(stage)] = plan.place
        if plan.place is None or plan.drop_old:
            self.forget()
            old = None
        if plan.place is None:
            self._say(f"trunk of {trunk.n} blocks recomputed: {plan.reason}", **_numbers(plan))
            return None
        beside = 0 if old is None or _overwrites(old, plan.place, windows) else old.store.nbytes
        self._make_room(len(windows) * example[0].nbytes + beside)
        try:
            store = self._store(plan.place, wanted, windows, example, old)
        except (OSError, RuntimeError) as error:
            self.forget()
            self._say(f"trunk of {trunk.n} blocks recomputed: no room in {plan.place} ({error})")
            return None
        try:
            return self._filled(TrunkRows(windows, store, wanted), old, filler, plan)
        except OSError as error:
            self.forget()
            self._say(f"trunk of {trunk.n} blocks recomputed: {plan.place} failed ({error})")
            return None

    def forget(self) -> None:
        """Give back what is kept."""
        if self._kept is not None:
            self._kept.store.discard()
            self._kept = None

    def close(self, *, keep_files: bool) -> None:
        """Give back what is kept; files may stay."""
        if keep_files and self._kept is not None and isinstance(self._kept.store, DiskStore):
            self._kept.store.close()
            self._kept = None
        self.forget()

    # -- what is there already -----------------------------------------------------------------

    def _at_hand(
        self, wanted: Identity, digests: Sequence[str], *, pinned: bool
    ) -> TrunkRows | None:
        """Rows that are the wanted ones or can be advanced to them; others are let go."""
        if self._kept is None:
            self._kept = self._from_disk(wanted, digests, pinned=pinned)
        elif not can_advance(self._kept.identity, wanted, digests):
            self._say("kept rows are of another trunk or text: let go")
            self.forget()
        return self._kept

    def _from_disk(
        self, wanted: Identity, digests: Sequence[str], *, pinned: bool
    ) -> TrunkRows | None:
        """The deepest usable cache that an interrupted run left in the folder."""
        found: list[DiskStore] = []
        for header in headers(self._folder):
            try:
                store = DiskStore.open(header, pinned=pinned)
            except CheckpointError as error:
                self._say(f"a kept trunk is not used: {error}")
                continue
            if can_advance(store.identity, wanted, digests):
                found.append(store)
            else:
                self._say(f"a kept trunk is not used: {header.name} is of another trunk or text")
                store.close()
        found.sort(key=lambda store: int(store.identity["n"]))
        best = found.pop() if found else None
        for store in found:
            store.close()
        remove_caches(self._folder, but=best)
        return None if best is None else TrunkRows(best.windows, best, best.identity)

    # -- where to --------------------------------------------------------------------------------

    def _plan(
        self,
        stage: int,
        loads: Sequence[StageLoad],
        trunk: FrozenTrunk,
        example: Tensor,
        windows: np.ndarray,
        old: TrunkRows | None,
    ) -> Plan:
        device = example.device
        room = Room(
            need=len(windows) * example[0].nbytes,
            limit=self.settings.limit,
            free=lambda place: free_bytes(place, device, self._folder),
        )
        if old is not None:
            room = replace(
                room,
                old_place=old.store.place,
                old_bytes=old.store.nbytes,
                same_windows=np.array_equal(old.windows, windows),
                known=float(old.holds(windows).mean()),
                n_known=old.n,
            )
        asked = self.places.get(str(stage), self.settings.cache)
        if asked is None:
            return Plan(None, "as before the interruption")

        def costs() -> Costs:
            if self._costs is None:
                # Blocks are of one shape, so one measurement serves all stages.
                self._costs = measure_costs(trunk, example, self._folder)
            return self._costs

        return choose(asked, device, loads, room, costs)

    def _store(
        self,
        place: str,
        wanted: Identity,
        windows: np.ndarray,
        example: Tensor,
        old: TrunkRows | None,
    ) -> RowStore:
        length, width = example.shape[1:]
        if place == "disk":
            pinned = example.device.type == "cuda"
            arguments = (self._folder, wanted, windows, (length, width), example.dtype)
            return DiskStore.create(*arguments, pinned=pinned)
        if old is not None and _overwrites(old, place, windows):
            return old.store
        return MemoryStore(place, (len(windows), length, width), example)

    # -- filling ---------------------------------------------------------------------------------

    def _filled(
        self, rows: TrunkRows, old: TrunkRows | None, filler: Filler, plan: Plan
    ) -> TrunkRows:
        sample = np.random.default_rng(0).permutation(rows.windows)[: filler.batches.batch_size]
        shallower = _read(old, sample) if old is not None and old.exact else None
        # While rows are overwritten they are of no use to anybody else.
        self._kept = None
        try:
            advanced = filler.fill(rows, old)
        except BaseException:
            rows.store.discard()
            if old is not None and old.store is not rows.store:
                self._kept = old
            raise
        if old is not None and old.store is not rows.store:
            old.store.discard()
        difference = _difference(rows, sample, shallower, old, filler)
        rows.exact = difference.largest == 0
        self._kept = rows
        again = f"{advanced} advanced, " if advanced else ""
        self._say(
            f"{_described(rows)}: {again}{len(rows.windows) - advanced} computed; "
            f"against recomputing: {difference}; {plan.reason}",
            **_numbers(plan),
            bytes=rows.store.nbytes,
            maximum_error=difference.largest,
        )
        return rows


def _overwrites(old: TrunkRows, place: str, windows: np.ndarray) -> bool:
    """Whether rows of `windows` take the very places of the old ones; in a file never."""
    there = old.store.place == place and place != "disk"
    return there and np.array_equal(old.windows, windows)


def _difference(
    rows: TrunkRows,
    sample: np.ndarray,
    shallower: Tensor | None,
    old: TrunkRows | None,
    filler: Filler,
) -> Difference:
    """Rows against recomputing them at other places of a micro-batch, as a step does.

    Rows that were advanced from exact ones need the newest blocks alone to be run for that, unless
    those differ.
    """
    kept = rows.read(sample).to(filler.trunk.model.device)
    if shallower is not None and old is not None:
        full = np.resize(np.arange(len(shallower)), filler.batches.batch_size)
        again = filler.trunk.onward(shallower.to(kept.device)[full], old.n)[: len(sample)]
        difference = Difference.between(kept, again)
        if difference.largest == 0:
            return difference
    full = np.resize(sample, filler.batches.batch_size)
    return Difference.between(kept, filler.trunk(filler.ids(full))[: len(sample)])


def _read(rows: TrunkRows, windows: np.ndarray) -> Tensor | None:
    """Rows of windows; None where some are not held or damaged."""
    if not rows.holds(windows).all():
        return None
    try:
        return rows.read(windows)
    except DamagedRows:
        return None


def _example(trunk: FrozenTrunk, filler: Filler) -> Tensor:
    batches = filler.batches
    windows = np.resize(np.arange(batches.n_windows), batches.batch_size)
    return trunk.example(filler.ids(windows))


def _described(rows: TrunkRows) -> str:
    size = megabytes(rows.store.nbytes)
    return f"trunk of {rows.n} blocks kept in {rows.store.place}, {size}"


def _numbers(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {"cache": plan.place or "off"}
    if plan.verdict is not None:
        values["seconds_with"] = plan.verdict.cached
        values["seconds_without"] = plan.verdict.recomputed
    return values

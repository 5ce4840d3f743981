"""The activation cache of a run: found again, placed, filled, checked and freed, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastgrow.errors import CheckpointError
from fastgrow.growth.trunk.activations import (
    CachedActivations,
    CacheWriter,
    can_advance,
    identity,
)
from fastgrow.growth.trunk.costs import Costs, free_bytes, measure_costs
from fastgrow.growth.trunk.frozen import Difference, FrozenTrunk
from fastgrow.growth.trunk.placement import (
    CacheBudget,
    Placement,
    StageLoad,
    choose_place,
    megabytes,
)
from fastgrow.growth.trunk.settings import Trunk
from fastgrow.growth.trunk.stores import (
    ActivationStore,
    DamagedEntries,
    DiskStore,
    Identity,
    MemoryStore,
    headers,
    remove_caches,
)

Report = Callable[..., None]


class ActivationCache:
    """Provides each stage with its cached activations, or logs why it has none.

    Args:
        settings: the user's settings.
        folder: folder for files of this run only.
        report: writes a text and values to the log.
        free_memory: called before activations are computed, with the bytes that all cached
            activations will then take.

    Attributes:
        places: where each stage caches its activations (None: it does not), by its number.
    """

    def __init__(
        self,
        settings: Trunk,
        folder: Path,
        report: Report,
        free_memory: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.settings = settings
        self.places: dict[str, str | None] = {}
        self._folder = folder
        self._report = report
        self._free_memory = free_memory
        self._cached: CachedActivations | None = None
        self._costs: Costs | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are cached now."""
        return 0 if self._cached is None else self._cached.store.nbytes

    def for_stage(
        self, stage: int, loads: Sequence[StageLoad], writer: CacheWriter, digests: Sequence[str]
    ) -> CachedActivations | None:
        """Return the activations of every window that a stage reads; None if recomputing is better.

        Args:
            stage: number of the stage.
            loads: loads of this stage and of those after it.
            writer: computes activations with the stage's trunk.
            digests: digests of the trunk at every depth (`trunk_digests`).
        """
        trunk, batches = writer.trunk, writer.batches
        windows = batches.windows_of(round(loads[0].reads))
        distinct = float(writer.n_micro_batches(windows))
        loads = [replace(loads[0], distinct=distinct), *loads[1:]]
        wanted = identity(trunk, digests[trunk.n], batches, windows)
        pinned = trunk.model.device.type == "cuda"
        old = self._available(wanted, digests, pinned=pinned)
        if old is not None and old.identity == wanted and old.store.nbytes <= self.settings.limit:
            self.places[str(stage)] = old.store.place
            self._report(f"{_description(old)}, found again", cache=old.store.place)
            return old
        if old is not None and old.store.nbytes > self.settings.limit:
            # The run was started with a higher limit.
            self.clear()
            old = None
        example = _example(trunk, writer)
        placement = self._placement(stage, loads, trunk, example, windows, old)
        self.places[str(stage)] = placement.place
        if placement.place is None or placement.drop_old:
            self.clear()
            old = None
        if placement.place is None:
            text = f"trunk of {trunk.n} blocks recomputed: {placement.reason}"
            self._report(text, **_values(placement))
            return None
        place = placement.place
        kept = 0 if old is None or _overwrites(old, place, windows) else old.store.nbytes
        self._free_memory(len(windows) * example[0].nbytes + kept)
        try:
            store = self._new_store(place, wanted, windows, example, old)
        except (OSError, RuntimeError) as error:
            self.clear()
            self._report(f"trunk of {trunk.n} blocks recomputed: no memory in {place} ({error})")
            return None
        try:
            target = CachedActivations(windows, store, wanted)
            return self._fill(target, old, writer, placement)
        except OSError as error:
            self.clear()
            self._report(f"trunk of {trunk.n} blocks recomputed: {place} failed ({error})")
            return None

    def clear(self) -> None:
        """Free everything that is cached."""
        if self._cached is not None:
            self._cached.store.discard()
            self._cached = None

    def close(self, *, keep_files: bool) -> None:
        """Free everything that is cached; files may stay."""
        if keep_files and self._cached is not None and isinstance(self._cached.store, DiskStore):
            self._cached.store.close()
            self._cached = None
        self.clear()

    # -- finding what is cached ----------------------------------------------------------------

    def _available(
        self, wanted: Identity, digests: Sequence[str], *, pinned: bool
    ) -> CachedActivations | None:
        """Return activations that are the wanted ones or can be advanced; others are freed."""
        if self._cached is None:
            self._cached = self._from_disk(wanted, digests, pinned=pinned)
        elif not can_advance(self._cached.identity, wanted, digests):
            self._report("the cached activations are of another trunk or text: removed")
            self.clear()
        return self._cached

    def _from_disk(
        self, wanted: Identity, digests: Sequence[str], *, pinned: bool
    ) -> CachedActivations | None:
        """Open the deepest usable cache that an interrupted run left in the folder."""
        found: list[DiskStore] = []
        for header in headers(self._folder):
            try:
                store = DiskStore.open(header, pinned=pinned)
            except CheckpointError as error:
                self._report(f"an activation cache is not used: {error}")
                continue
            if can_advance(store.identity, wanted, digests):
                found.append(store)
            else:
                self._report(
                    f"an activation cache is not used: {header.name} is of another trunk or text"
                )
                store.close()
        found.sort(key=lambda store: int(store.identity["n"]))
        best = found.pop() if found else None
        for store in found:
            store.close()
        remove_caches(self._folder, but=best)
        return None if best is None else CachedActivations(best.windows, best, best.identity)

    # -- choosing a place ----------------------------------------------------------------------

    def _placement(
        self,
        stage: int,
        loads: Sequence[StageLoad],
        trunk: FrozenTrunk,
        example: Tensor,
        windows: np.ndarray,
        old: CachedActivations | None,
    ) -> Placement:
        device = example.device
        budget = CacheBudget(
            need=len(windows) * example[0].nbytes,
            limit=self.settings.limit,
            free=lambda place: free_bytes(place, device, self._folder),
        )
        if old is not None:
            budget = replace(
                budget,
                old_place=old.store.place,
                old_bytes=old.store.nbytes,
                same_windows=np.array_equal(old.windows, windows),
                available=float(old.holds(windows).mean()),
                available_depth=old.n,
            )
        requested = self.places.get(str(stage), self.settings.cache)
        if requested is None:
            return Placement(None, "as before the interruption")

        def costs() -> Costs:
            if self._costs is None:
                # All blocks have the same shape, so one measurement serves all stages.
                self._costs = measure_costs(trunk, example, self._folder)
            return self._costs

        return choose_place(requested, device, loads, budget, costs)

    def _new_store(
        self,
        place: str,
        wanted: Identity,
        windows: np.ndarray,
        example: Tensor,
        old: CachedActivations | None,
    ) -> ActivationStore:
        length, width = example.shape[1:]
        if place == "disk":
            pinned = example.device.type == "cuda"
            arguments = (self._folder, wanted, windows, (length, width), example.dtype)
            return DiskStore.create(*arguments, pinned=pinned)
        if old is not None and _overwrites(old, place, windows):
            return old.store
        return MemoryStore(place, (len(windows), length, width), example)

    # -- writing -------------------------------------------------------------------------------

    def _fill(
        self,
        target: CachedActivations,
        old: CachedActivations | None,
        writer: CacheWriter,
        placement: Placement,
    ) -> CachedActivations:
        sample = np.random.default_rng(0).permutation(target.windows)[: writer.batches.batch_size]
        shallower = _read(old, sample) if old is not None and old.exact else None
        # While entries are overwritten, the cache cannot be used.
        self._cached = None
        try:
            advanced = writer.write(target, old)
        except BaseException:
            target.store.discard()
            if old is not None and old.store is not target.store:
                self._cached = old
            raise
        if old is not None and old.store is not target.store:
            old.store.discard()
        difference = _difference(target, sample, shallower, old, writer)
        target.exact = difference.largest == 0
        self._cached = target
        again = f"{advanced} advanced, " if advanced else ""
        self._report(
            f"{_description(target)}: {again}{len(target.windows) - advanced} computed; "
            f"compared with recomputing: {difference}; {placement.reason}",
            **_values(placement),
            bytes=target.store.nbytes,
            maximum_error=difference.largest,
        )
        return target


def _overwrites(old: CachedActivations, place: str, windows: np.ndarray) -> bool:
    """Whether activations of `windows` overwrite the old ones; never in a file."""
    there = old.store.place == place and place != "disk"
    return there and np.array_equal(old.windows, windows)


def _difference(
    cached: CachedActivations,
    sample: np.ndarray,
    shallower: Tensor | None,
    old: CachedActivations | None,
    writer: CacheWriter,
) -> Difference:
    """Compare cached activations with recomputing them at other positions, as a step does.

    For activations that were advanced from exact ones it is enough to run the added blocks; only
    if these differ is the whole trunk run.
    """
    found = cached.read(sample).to(writer.trunk.model.device)
    if shallower is not None and old is not None:
        full = np.resize(np.arange(len(shallower)), writer.batches.batch_size)
        again = writer.trunk.run_from(shallower.to(found.device)[full], old.n)[: len(sample)]
        difference = Difference.between(found, again)
        if difference.largest == 0:
            return difference
    full = np.resize(sample, writer.batches.batch_size)
    return Difference.between(found, writer.trunk(writer.ids(full))[: len(sample)])


def _read(cached: CachedActivations, windows: np.ndarray) -> Tensor | None:
    """Read the activations of windows; None if some are missing or damaged."""
    if not cached.holds(windows).all():
        return None
    try:
        return cached.read(windows)
    except DamagedEntries:
        return None


def _example(trunk: FrozenTrunk, writer: CacheWriter) -> Tensor:
    batches = writer.batches
    windows = np.resize(np.arange(batches.n_windows), batches.batch_size)
    return trunk.example(writer.ids(windows))


def _description(cached: CachedActivations) -> str:
    size = megabytes(cached.store.nbytes)
    return f"trunk of {cached.n} blocks cached in {cached.store.place}, {size}"


def _values(placement: Placement) -> dict[str, Any]:
    values: dict[str, Any] = {"cache": placement.place or "off"}
    if placement.estimate is not None:
        values["seconds_with"] = placement.estimate.cached
        values["seconds_without"] = placement.estimate.recomputed
    return values

"""The trunk of each stage of a run: how it is run, and what of its output is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgrow.growth.trunk.batches import AHEAD, CachedBatches
from fastgrow.growth.trunk.choice import StageLoad
from fastgrow.growth.trunk.disk import remove_caches
from fastgrow.growth.trunk.frozen import Difference, FrozenTrunk
from fastgrow.growth.trunk.keeper import RowKeeper
from fastgrow.growth.trunk.key import trunk_digests
from fastgrow.growth.trunk.objective import Memo, OnTrunk
from fastgrow.growth.trunk.rows import Filler
from fastgrow.growth.trunk.settings import Trunk
from fastgrow.nn import Decoder
from fastgrow.training import Batches, RunLog


@dataclass
class StageTrunk:
    """What a stage's trainer is given.

    Attributes:
        objective: has the loss; None where there is no trunk and the model's own is taken.
        batches: of ids, or of the trunk's output for them.
    """

    objective: OnTrunk | None
    batches: Batches | CachedBatches

    def close(self) -> None:
        """The stage is over, or stopped."""
        if isinstance(self.batches, CachedBatches):
            self.batches.close()


class TrunkEngine:
    """Prepares the trunk of one stage after the other.

    Args:
        model: as it grows.
        settings: the user's.
        out: the run's folder; None for a run that leaves nothing behind.
        log: told what was chosen and why.
        precision: the autocast dtype of training; float32 casts nothing.
        pause: called between the micro-batches of a longer pass; may raise to stop.
    """

    def __init__(
        self,
        model: Decoder,
        settings: Trunk,
        *,
        out: Path | None = None,
        log: RunLog,
        precision: torch.dtype = torch.float32,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.settings = settings
        self._folder = settings.folder_for(out)
        self._leaves_nothing = out is None
        self._log = log
        self._precision = precision
        self._pause = pause
        self._keeper = RowKeeper(settings, self._folder, self._say, self._make_room)
        # With the depth and the digest of the trunk whose outputs they are.
        self._memo: tuple[Memo, int, str] | None = None
        self._stage: StageTrunk | None = None

    def begin(self, stage: int, loads: Sequence[StageLoad], batches: Batches) -> StageTrunk:
        """The trunk of stage number `stage`, whose load is the first of `loads`.

        Args:
            stage: its number; a stage that is begun again keeps to its choice.
            loads: of this stage and those after it.
            batches: at their beginning.
        """
        self._stage = self._begin(stage, loads, batches)
        return self._stage

    def _begin(self, stage: int, loads: Sequence[StageLoad], batches: Batches) -> StageTrunk:
        n, settings = loads[0].n, self.settings
        if n == 0:
            self._memo = None
            self._keeper.forget()
            if settings.cache != "off" and stage > 1:
                self._say("no frozen trunk: the lowest block trains or is adapted", cache="off")
            return StageTrunk(None, batches)
        if not _splits(self.model):
            self._keeper.forget()
            if settings != Trunk(cache="off"):
                self._say("the model has a loss of its own: it is computed whole", cache="off")
            return StageTrunk(None, batches)
        trunk = FrozenTrunk(self.model, n, dtype=settings.dtype, precision=self._precision)
        exact = FrozenTrunk(self.model, n)
        if settings.dtype != "same":
            self._report_lowered(trunk, batches)
        if settings.cache == "off":
            return StageTrunk(OnTrunk(self.model, trunk, exact, None), batches)
        digests = trunk_digests(self.model, n)
        filler = Filler(trunk, batches, self._pause)
        rows = self._keeper.rows(stage, loads, filler, digests)
        self._set_memo(exact, digests)
        assert self._memo is not None
        objective = OnTrunk(self.model, trunk, exact, self._memo[0])
        if rows is None:
            return StageTrunk(objective, batches)
        repairer = Filler(trunk, batches)

        def repair(slots: np.ndarray) -> None:
            self._say(f"{len(slots)} kept rows of the trunk were damaged: computed anew")
            repairer.repair(rows, slots)

        in_thread = rows.store.place == "disk" or self.model.device.type == "cuda"
        ahead = AHEAD if in_thread else 0
        reader = CachedBatches(batches, rows, repair, ahead, compute=repairer.rows_of)
        return StageTrunk(objective, reader)

    def __enter__(self) -> TrunkEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go of everything; files stay for a run that was stopped and may go on."""
        if self._stage is not None:
            self._stage.close()
        self._memo = None
        finished = kind is None or self._leaves_nothing
        self._keeper.close(keep_files=not finished)
        if finished:
            remove_caches(self._folder)

    def state_dict(self) -> dict[str, Any]:
        """Where each stage keeps its rows; never the rows."""
        return {"places": dict(self._keeper.places)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep to the choices that were made."""
        self._keeper.places = dict(state["places"])

    def _set_memo(self, exact: FrozenTrunk, digests: Sequence[str]) -> None:
        """Bring the validation's outputs to this trunk, within what the rows leave of the limit."""
        limit = max(0, self.settings.limit - self._keeper.nbytes)
        memo = Memo(limit)
        if self._memo is not None:
            old, n, digest = self._memo
            if n <= exact.n and digests[n] == digest and old.nbytes <= limit:
                memo, memo.limit = old, limit
                memo.advance(exact, n)
        self._memo = (memo, exact.n, digests[exact.n])

    def _make_room(self, nbytes: int) -> None:
        """Let go of the validation's outputs if they and rows of so many bytes pass the limit."""
        if self._memo is not None and self._memo[0].nbytes + nbytes > self.settings.limit:
            self._memo = None

    def _report_lowered(self, trunk: FrozenTrunk, batches: Batches) -> None:
        windows = np.resize(np.arange(batches.n_windows), batches.batch_size)
        ids = batches.read(windows)[0].to(self.model.device)
        plain = FrozenTrunk(self.model, trunk.n, precision=self._precision)
        error = Difference.between(trunk(ids), plain(ids))
        self._say(
            f"trunk of {trunk.n} blocks in {trunk.dtype}: {error}",
            dtype=trunk.dtype,
            maximum_error=error.largest,
            relative_error=error.relative,
        )

    def _say(self, text: str, **values: Any) -> None:
        self._log.event("trunk", text, message=text, **values)


def _splits(model: Decoder) -> bool:
    """Whether the loss may be computed from the trunk's output.

    Not where a subclass, or the model itself, has a `loss` or `hidden` of its own: split at the
    trunk, it would not be called any more.
    """
    return all(
        getattr(getattr(model, name), "__func__", None) is getattr(Decoder, name)
        for name in ("loss", "hidden")
    )

"""Check that cached activations of the frozen trunk equal recomputed ones."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastgrow.errors import FastgrowError
from fastgrow.growth.active import StageShape
from fastgrow.growth.doctor.findings import Finding
from fastgrow.growth.doctor.stage import ON_GPU, ROUNDING, Setting
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.activations import CachedBatches
from fastgrow.growth.trunk.engine import TrunkEngine
from fastgrow.growth.trunk.frozen import Difference, FrozenTrunk
from fastgrow.growth.trunk.placement import StageLoad
from fastgrow.nn import Decoder
from fastgrow.training import RunLog
from fastgrow.training.activations import training_mode
from fastgrow.training.precision import resolve_precision


class TrunkExam:
    """Cache the trunk's activations in each stage as the run would, and compare them.

    As in a run, the cache of a stage is derived from that of the previous stage if possible.

    Args:
        model: the model, which is grown between the checks.
        trunk: trunk settings of the run; None if it has none.
        setting: setting of the checks.
    """

    def __init__(self, model: Decoder, trunk: Trunk | None, setting: Setting) -> None:
        self.model = model
        self._setting = setting
        self._precision = resolve_precision(setting.train.precision, model.device)
        self._engine: TrunkEngine | None = None
        if trunk is None:
            return
        # With so few steps, "auto" would decide against caching.
        cache = "ram" if trunk.cache == "auto" else trunk.cache
        self._engine = TrunkEngine(
            model,
            replace(trunk, cache=cache, folder=None),
            out=setting.folder / "cached-trunk",
            log=RunLog(quiet=True),
            precision=self._precision,
        )

    def __enter__(self) -> TrunkExam:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine is not None:
            self._engine.__exit__(None)

    def check(self, number: int, shape: StageShape) -> Finding:
        """Return the finding of a stage, after its training, which does not change its trunk."""
        if self._engine is None:
            return Finding(number, "trunk", None, "the run has no trunk settings")
        try:
            with training_mode(self.model):
                return self._compare(self._engine, number, shape.n_trunk)
        except FastgrowError as error:
            return Finding(number, "trunk", False, str(error))

    def _compare(self, engine: TrunkEngine, number: int, n: int) -> Finding:
        batches, again = self._setting.batches(), self._setting.batches()
        reads = self._setting.steps * self._setting.train.accumulate
        distinct = min(reads, batches.n_windows / batches.batch_size)
        share = distinct * batches.batch_size / batches.n_windows
        stage = engine.begin(number, [StageLoad(n, reads, distinct, share, grown=False)], batches)
        if not isinstance(stage.batches, CachedBatches):
            why = "nothing is cached with these settings" if n else "no frozen trunk"
            return Finding(number, "trunk", None, why)
        settings = engine.settings
        trunk = FrozenTrunk(self.model, n, dtype=settings.dtype, precision=self._precision)
        device = self.model.device
        cached, computed = [], []
        for _ in range(reads):
            cached.append(next(stage.batches)[0].to(device))
            computed.append(trunk(next(again)[0].to(device)))
        stage.close()
        found = Difference.between(torch.cat(cached), torch.cat(computed))
        coarse = (
            device.type == "cuda" or self._precision != torch.float32 or settings.dtype == "bf16"
        )
        ok = found.relative <= (ON_GPU if coarse else ROUNDING)
        return Finding(number, "trunk", ok, f"cached against recomputed: {found}")

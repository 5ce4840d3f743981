"""The trunk of each stage of a run: the loss and the batches that the stage's trainer uses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgrow.growth.trunk.activations import AHEAD, CachedBatches, CacheWriter
from fastgrow.growth.trunk.cache import ActivationCache
from fastgrow.growth.trunk.frozen import Difference, FrozenTrunk, trunk_digests
from fastgrow.growth.trunk.placement import StageLoad
from fastgrow.growth.trunk.settings import Trunk
from fastgrow.growth.trunk.stores import remove_caches
from fastgrow.nn import Decoder
from fastgrow.training import Batches, RunLog
from fastgrow.training.activations import training_mode
from fastgrow.training.precision import autocast


@dataclass
class StageTrunk:
    """What a stage's trainer uses.

    Attributes:
        objective: computes the loss; None if there is no trunk and the model itself computes it.
        batches: batches of ids, or of the trunk's output for them.
    """

    objective: LossFromTrunk | None
    batches: Batches | CachedBatches

    def close(self) -> None:
        """Release the batches after the stage has ended or was stopped."""
        if isinstance(self.batches, CachedBatches):
            self.batches.close()


class TrunkEngine:
    """Prepares the trunk of one stage after the other.

    Args:
        model: the model that grows.
        settings: the user's settings.
        out: the run's folder; None for a run that keeps no files.
        log: receives what was chosen and why.
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
        self._keeps_no_files = out is None
        self._log = log
        self._precision = precision
        self._pause = pause
        self._cache = ActivationCache(settings, self._folder, self._report, self._free_memory)
        # With the depth and the digest of the trunk whose outputs it holds.
        self._evaluations: tuple[EvaluationCache, int, str] | None = None
        self._stage: StageTrunk | None = None

    def begin(self, stage: int, loads: Sequence[StageLoad], batches: Batches) -> StageTrunk:
        """Return the trunk of a stage.

        Args:
            stage: number of the stage; a stage that is resumed keeps its choice.
            loads: loads of this stage and of those after it.
            batches: the stage's batches, at their start.
        """
        self._stage = self._begin(stage, loads, batches)
        return self._stage

    def _begin(self, stage: int, loads: Sequence[StageLoad], batches: Batches) -> StageTrunk:
        n, settings = loads[0].n, self.settings
        if n == 0:
            self._evaluations = None
            self._cache.clear()
            if settings.cache != "off" and stage > 1:
                self._report("no frozen trunk: the lowest block is trained or adapted", cache="off")
            return StageTrunk(None, batches)
        if not _can_split_loss(self.model):
            self._cache.clear()
            if settings != Trunk(cache="off"):
                self._report(
                    "the model overrides loss or hidden: its blocks are always run together",
                    cache="off",
                )
            return StageTrunk(None, batches)
        trunk = FrozenTrunk(self.model, n, dtype=settings.dtype, precision=self._precision)
        exact = FrozenTrunk(self.model, n)
        if settings.dtype != "same":
            self._report_quantization_error(trunk, batches)
        if settings.cache == "off":
            return StageTrunk(LossFromTrunk(self.model, trunk, exact, None), batches)
        digests = trunk_digests(self.model, n)
        writer = CacheWriter(trunk, batches, self._pause)
        cached = self._cache.for_stage(stage, loads, writer, digests)
        evaluations = self._evaluation_cache(exact, digests)
        objective = LossFromTrunk(self.model, trunk, exact, evaluations)
        if cached is None:
            return StageTrunk(objective, batches)
        repairer = CacheWriter(trunk, batches)

        def repair(slots: np.ndarray) -> None:
            self._report(f"{len(slots)} cached activations were damaged: computed again")
            repairer.repair(cached, slots)

        in_thread = cached.store.place == "disk" or self.model.device.type == "cuda"
        ahead = AHEAD if in_thread else 0
        reader = CachedBatches(batches, cached, repair, ahead, compute=repairer.compute_any)
        return StageTrunk(objective, reader)

    def __enter__(self) -> TrunkEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Free everything; files are kept for a run that was stopped and may be resumed."""
        if self._stage is not None:
            self._stage.close()
        self._evaluations = None
        finished = kind is None or self._keeps_no_files
        self._cache.close(keep_files=not finished)
        if finished:
            remove_caches(self._folder)

    def state_dict(self) -> dict[str, Any]:
        """Return where each stage caches its activations; never the activations themselves."""
        return {"places": dict(self._cache.places)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore these choices."""
        self._cache.places = dict(state["places"])

    def _evaluation_cache(self, exact: FrozenTrunk, digests: Sequence[str]) -> EvaluationCache:
        """Return the evaluation's outputs of this trunk, in what the cache leaves of the limit."""
        limit = max(0, self.settings.limit - self._cache.nbytes)
        evaluations = EvaluationCache(limit)
        if self._evaluations is not None:
            old, n, digest = self._evaluations
            if n <= exact.n and digests[n] == digest and old.nbytes <= limit:
                evaluations, evaluations.limit = old, limit
                evaluations.advance(exact, n)
        self._evaluations = (evaluations, exact.n, digests[exact.n])
        return evaluations

    def _free_memory(self, nbytes: int) -> None:
        """Free the evaluation's outputs if they exceed the limit together with `nbytes` bytes."""
        evaluations = self._evaluations
        if evaluations is not None and evaluations[0].nbytes + nbytes > self.settings.limit:
            self._evaluations = None

    def _report_quantization_error(self, trunk: FrozenTrunk, batches: Batches) -> None:
        windows = np.resize(np.arange(batches.n_windows), batches.batch_size)
        ids = batches.read(windows)[0].to(self.model.device)
        plain = FrozenTrunk(self.model, trunk.n, precision=self._precision)
        error = Difference.between(trunk(ids), plain(ids))
        self._report(
            f"trunk of {trunk.n} blocks in {trunk.dtype}: {error}",
            dtype=trunk.dtype,
            maximum_error=error.largest,
            relative_error=error.relative,
        )

    def _report(self, text: str, **values: Any) -> None:
        self._log.event("trunk", text, message=text, **values)


def _can_split_loss(model: Decoder) -> bool:
    """Whether the loss may be computed from the trunk's output.

    It may not if a subclass, or the model itself, overrides `loss` or `hidden`: split at the trunk,
    the override would no longer be called.
    """
    return all(
        getattr(getattr(model, name), "__func__", None) is getattr(Decoder, name)
        for name in ("loss", "hidden")
    )


# -- the loss ----------------------------------------------------------------------------------


class LossFromTrunk(nn.Module):
    """Computes the model's `loss` from ids or from the trunk's output for them.

    Args:
        model: the decoder.
        trunk: the trunk that training runs.
        exact: the trunk that an evaluation runs: in the model's own dtype.
        evaluations: caches the outputs of evaluations; None computes them each time.
    """

    def __init__(
        self,
        model: Decoder,
        trunk: FrozenTrunk,
        exact: FrozenTrunk,
        evaluations: EvaluationCache | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.trunk = trunk
        self.exact = exact
        self.evaluations = evaluations

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross-entropy of `targets` [B, T] in nats.

        Args:
            ids: [B, T] int64, or the trunk's output [B, T, d_model].
            targets, ignore_index, reduction: as `Decoder.loss`.
        """
        x = ids if ids.is_floating_point() else self._output(ids)
        if self.trunk.dtype == "bf16":
            x = x.to(self.model.lm_head.weight.dtype)
        return self.model.loss_from(
            x, self.trunk.n, targets, ignore_index=ignore_index, reduction=reduction
        )

    def _output(self, ids: Tensor) -> Tensor:
        if self.training:
            return self.trunk(ids)
        if self.evaluations is None:
            return self.exact(ids)
        return self.evaluations.output(ids, self.exact)


class EvaluationCache:
    """The exact trunk's outputs for batches that are read again unchanged: those of evaluations.

    The key of a batch is its ids and the autocast dtype of the evaluation. The cached output has
    the same bits as the one that was computed.

    Args:
        limit: bytes; once they are used up, further batches are computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._outputs: dict[tuple[bytes, torch.dtype], Tensor] = {}

    def output(self, ids: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `compute(ids)`, [B, T, d_model] on the device of `ids`, cached if possible.

        Args:
            ids: [B, T] int64.
            compute: returns the trunk's output.
        """
        kind = ids.device.type
        casts = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else torch.float32
        content = f"{tuple(ids.shape)}".encode() + ids.cpu().numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest(), dtype
        cached = self._outputs.get(key)
        if cached is not None:
            return cached.to(ids.device)
        x = compute(ids)
        if self.nbytes + x.nbytes <= self.limit:
            self._outputs[key] = x.cpu()
            self.nbytes += x.nbytes
        return x

    def advance(self, trunk: FrozenTrunk, first: int) -> None:
        """Replace every output of `first` blocks by that of the whole trunk."""
        device = trunk.model.device
        with training_mode(trunk.model, False):
            for (content, dtype), x in self._outputs.items():
                with autocast(dtype, device):
                    self._outputs[content, dtype] = trunk.run_from(x.to(device), first).cpu()

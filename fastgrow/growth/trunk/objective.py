"""The loss of a stage: what trains, on top of the trunk's output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.nn import Decoder
from fastgrow.training.activations import training_mode
from fastgrow.training.precision import autocast


class Memo:
    """The exact trunk's output for batches that come again unchanged: those of an evaluation.

    A batch is known by its ids and by the autocast dtype that it is evaluated under, and answered
    with the very bits that were computed then.

    Args:
        limit: bytes; what comes when it is full is computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: dict[tuple[bytes, torch.dtype], Tensor] = {}

    def output(self, ids: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` makes of `ids`, [B, T, d_model] on their device."""
        kind = ids.device.type
        casts = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else torch.float32
        content = f"{tuple(ids.shape)}".encode() + ids.cpu().numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest(), dtype
        known = self._kept.get(key)
        if known is not None:
            return known.to(ids.device)
        x = compute(ids)
        if self.nbytes + x.nbytes <= self.limit:
            self._kept[key] = x.cpu()
            self.nbytes += x.nbytes
        return x

    def advance(self, trunk: FrozenTrunk, first: int) -> None:
        """Bring every output from `first` blocks to the trunk's depth."""
        device = trunk.model.device
        with training_mode(trunk.model, False):
            for (content, dtype), x in self._kept.items():
                with autocast(dtype, device):
                    self._kept[content, dtype] = trunk.onward(x.to(device), first).cpu()


class OnTrunk(nn.Module):
    """Has the model's `loss`, of ids or of what the trunk made of them.

    Args:
        model: the decoder.
        trunk: what training runs.
        exact: what an evaluation runs: the same in the model's own dtype.
        memo: keeps the outputs of evaluations; None computes them each time.
    """

    def __init__(
        self, model: Decoder, trunk: FrozenTrunk, exact: FrozenTrunk, memo: Memo | None
    ) -> None:
        super().__init__()
        self.model = model
        self.trunk = trunk
        self.exact = exact
        self.memo = memo

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T].

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
        if self.memo is None:
            return self.exact(ids)
        return self.memo.output(ids, self.exact)

"""The loss of a stage: what trains, on top of the trunk's output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.nn import Decoder


class Memo:
    """The exact trunk's output for batches that come again unchanged: those of an evaluation.

    A batch is known by its ids, and answered with the very bits that were computed from them.

    Args:
        limit: bytes; what comes when it is full is computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: dict[bytes, Tensor] = {}

    def output(self, ids: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` makes of `ids`, [B, T, d_model] on their device."""
        name = f"{tuple(ids.shape)}".encode()
        key = hashlib.blake2b(name + ids.cpu().numpy().tobytes(), digest_size=16).digest()
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
        for key, x in self._kept.items():
            self._kept[key] = trunk.onward(x.to(device), first).cpu()


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
        self, x: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T].

        Args:
            x: [B, T] int64, or the trunk's output [B, T, d_model].
            targets, ignore_index, reduction: as `Decoder.loss`.
        """
        if not x.is_floating_point():
            x = self._output(x)
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

"""Running the frozen trunk: no autograd, nothing saved."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgrow.growth.trunk.lowered import RunBlock, lower_blocks
from fastgrow.nn import Decoder
from fastgrow.training.precision import autocast


@dataclass(frozen=True)
class Difference:
    """How far one result is from another.

    Attributes:
        largest: of the absolute differences.
        relative: root mean square of the differences over that of the reference.
    """

    largest: float
    relative: float

    @classmethod
    def between(cls, x: Tensor, reference: Tensor) -> Difference:
        apart = x.double() - reference.double()
        size = float(reference.double().square().mean().sqrt())
        root = float(apart.square().mean().sqrt())
        return cls(float(apart.abs().max()), root / size if size else root)

    def __str__(self) -> str:
        if self.largest == 0:
            return "bit for bit"
        return f"maximum error {self.largest:.3g}, {self.relative:.2g} of the values' size"


class FrozenTrunk:
    """The embedding and the lowest `n` blocks of a decoder.

    Args:
        model: the decoder; its blocks may grow above the trunk meanwhile.
        n: blocks of the trunk.
        dtype: as `Trunk.dtype`.
        precision: the autocast dtype that it runs under; None takes the caller's.
    """

    def __init__(
        self,
        model: Decoder,
        n: int,
        *,
        dtype: str = "same",
        precision: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.n = n
        self.dtype = dtype
        self.precision = precision
        # A list of modules is one of Module to the type checker.
        blocks: list[Any] = list(model.blocks[:n])
        self._blocks: list[RunBlock] = blocks if dtype == "same" else lower_blocks(blocks, dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """[B, T] int64 on the model's device → [B, T, d_model]."""
        with torch.no_grad(), self._autocast(ids.device):
            return self._through(self._embedded(ids), 0)

    def example(self, ids: Tensor) -> Tensor:
        """A tensor of the output's shape, dtype and kind of values, by one block alone."""
        with torch.no_grad(), self._autocast(ids.device):
            return self._through(self._embedded(ids), self.n - 1)

    def onward(self, x: Tensor, first: int) -> Tensor:
        """What the blocks from `first` on make of the output of those below it."""
        with torch.no_grad(), self._autocast(x.device):
            return self._through(x, first)

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        if self.precision is None:
            return contextlib.nullcontext()
        return autocast(self.precision, device)

    def _embedded(self, ids: Tensor) -> Tensor:
        x = self.model.embedding(ids)
        return x.to(torch.bfloat16) if self.dtype == "bf16" else x

    def _through(self, x: Tensor, first: int) -> Tensor:
        rope = self.model.rope(x.shape[1])
        for block in self._blocks[first:]:
            x = block(x, rope)
        return x

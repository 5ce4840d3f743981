"""Blocks in fewer bits: bfloat16 copies, or matrices of one byte a number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow.errors import ConfigError
from fastgrow.nn import Block
from fastgrow.ops import RopeTable

RunBlock = Callable[[Tensor, RopeTable], Tensor]

# The largest number of each format.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_PACKED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Packed:
    """A matrix as values · scale.

    Attributes:
        values: [out, in] int8 or float8_e4m3fn.
        scale: [out, 1], the channel's largest magnitude over the format's.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> Packed:
        """Round a matrix [out, in] to the nearest of the format, each output channel by itself."""
        largest = _LARGEST[dtype]
        scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        scale = scale / largest
        scaled = (weight / scale).clamp(-largest, largest)
        return cls((scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale)

    def unpacked(self) -> Tensor:
        """[out, in] in the scale's dtype."""
        return self.values.to(self.scale.dtype) * self.scale


def lower_blocks(blocks: list[Block], dtype: str) -> list[RunBlock]:
    """Copies of the blocks in `"bf16"`, `"int8"` or `"fp8"`, each to be called as a block is.

    Raises:
        ConfigError: the device does not convert to the format.
    """
    if dtype == "bf16":
        return [copy.deepcopy(block).to(torch.bfloat16) for block in blocks]
    if not blocks:
        return []
    kind, device = _PACKED[dtype], next(blocks[0].parameters()).device
    try:
        torch.ones(1, device=device).to(kind).float()
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"Trunk.dtype: {device} has no {dtype} ({error})") from None
    # One block holds the weights of whichever runs; the rest stay packed.
    bench = copy.deepcopy(blocks[0]).requires_grad_(False)
    return [_PackedBlock(block, bench, kind) for block in blocks]


class _PackedBlock:
    def __init__(self, block: Block, bench: Block, dtype: torch.dtype) -> None:
        self._bench = bench
        self._matrices: dict[str, Packed] = {}
        self._vectors: dict[str, Tensor] = {}
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                self._matrices[name] = Packed.of(parameter.detach(), dtype)
            else:
                self._vectors[name] = parameter.detach()

    def __call__(self, x: Tensor, rope: RopeTable) -> Tensor:
        for name, parameter in self._bench.named_parameters():
            packed = self._matrices.get(name)
            parameter.copy_(self._vectors[name] if packed is None else packed.unpacked())
        return self._bench(x, rope)

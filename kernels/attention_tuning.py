"""Attention's tiles to choose from on a GPU (benchmarks/tuning.py says how)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastgrow.kernels.ahead import usage
from fastgrow.kernels.attention import (
    Rope,
    Rules,
    backward,
    d_key_tiles,
    d_query_tiles,
    forward,
    forward_tiles,
)
from fastgrow.kernels.attention_arguments import LENGTHS, Tiles, bucket

DTYPE = torch.bfloat16
TOKENS = 16384  # of a launch, in sequences of the bucket's length
WIDTH = 1024  # of all heads together

DEFAULTS = {
    "attention_forward": forward_tiles,
    "attention_d_query": d_query_tiles,
    "attention_d_key": d_key_tiles,
}
STAGES = (2, 3)
# (block_m, block_n, num_warps) that spill on sm_90 neither with 2 stages nor with 3.
SHAPES = {
    ("attention_forward", 32): [
        *[(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4)],
        *[(128, 64, 8), (128, 128, 8)],
    ],
    ("attention_d_query", 32): [
        *[(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4)],
        *[(128, 32, 8), (128, 64, 8)],
    ],
    ("attention_d_key", 32): [
        *[(16, 64, 4), (32, 64, 4), (64, 64, 4), (32, 128, 4), (32, 128, 8), (64, 128, 8)],
    ],
    ("attention_forward", 64): [
        *[(64, 32, 4), (64, 64, 4), (128, 32, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)],
    ],
    ("attention_d_query", 64): [
        *[(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 8), (128, 64, 8)],
    ],
    ("attention_d_key", 64): [
        *[(16, 64, 4), (32, 64, 4), (64, 64, 4), (32, 128, 8), (64, 128, 8)],
    ],
}


@dataclass(frozen=True)
class TunableAttention:
    """One of the kernels, at one head dimension and length."""

    kernel: str
    dim: int
    length: int
    capability: int

    @property
    def bucket(self) -> str:
        return bucket(DTYPE, self.dim, self.length)

    @property
    def candidates(self) -> list[dict[str, int]]:
        default = DEFAULTS[self.kernel](self.dim, DTYPE)
        shapes = itertools.product(SHAPES[self.kernel, self.dim], STAGES)
        others = [Tiles(*shape, stages) for shape, stages in shapes]
        return [dataclasses.asdict(tiles) for tiles in dict.fromkeys([default, *others])]

    def build(self, configuration: dict[str, int]) -> dict[str, int]:
        """Compile without launching; `spills` are bytes of a thread.

        Raises:
            ValueError: it needs more shared memory than a program may use.
        """
        name = self.kernel.removeprefix("attention_") + "_kernel"
        # Making the inputs of the backward kernels is recorded too, not launched.
        return usage(lambda: self._call(configuration, "meta")(), name, self.capability)

    def launcher(self, configuration: dict[str, int]) -> Callable[[], object]:
        """Attention with rotary positions, causal, on random tensors on the current GPU."""
        return self._call(configuration, "cuda")

    def _call(self, configuration: dict[str, int], device: str) -> Callable[[], object]:
        tiles = Tiles(**configuration)
        shape = (TOKENS // self.length, WIDTH // self.dim, self.length, self.dim)
        q, k, v, d_out = (torch.randn(shape, dtype=DTYPE, device=device) for _ in range(4))
        angles = torch.rand(self.length, self.dim // 2, device=device)
        setting = (Rope(angles.cos(), angles.sin()), self.dim**-0.5, Rules())
        if self.kernel == "attention_forward":
            return lambda: forward(q, k, v, *setting, with_lse=True, tiles=tiles)
        out, lse = forward(q, k, v, *setting, with_lse=True)
        assert lse is not None
        for_query = self.kernel == "attention_d_query"
        return lambda: backward(
            d_out, q, k, v, out, lse, *setting,
            for_query=for_query, for_key=not for_query, tiles=tiles,
        )  # fmt: skip


def tunables(capability: int) -> list[TunableAttention]:
    """Every kernel in every bucket that may have an entry in a table."""
    return [
        TunableAttention(kernel, dim, length, capability)
        for kernel, dim in SHAPES
        for length in LENGTHS
    ]

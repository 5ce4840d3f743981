"""Attention's tiles to choose from on a GPU (benchmarks/tuning.py says how)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

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
from fastgrow.kernels.tunable import Tunable, with_stages
from fastgrow.kernels.tuned import NAMES

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


def tunables(capability: int) -> list[Tunable[Tiles]]:
    """Every kernel in every bucket that may have an entry in a table."""
    return [_tunable(*which, n, capability) for which in SHAPES for n in LENGTHS]


def _tunable(kernel: str, dim: int, length: int, capability: int) -> Tunable[Tiles]:
    return Tunable(
        kernel=kernel,
        bucket=bucket(DTYPE, dim, length),
        default=DEFAULTS[kernel](dim, DTYPE),
        others=with_stages(Tiles, SHAPES[kernel, dim], STAGES),
        function=kernel.removeprefix("attention_") + "_kernel",
        call=functools.partial(_call, kernel, dim, length),
        capability=capability,
        code=f"{NAMES[DTYPE]}/D={dim}",
    )


def _call(kernel: str, dim: int, length: int, tiles: Tiles, device: str) -> Callable[[], object]:
    """Attention with rotary positions, causal, on random tensors."""
    shape = (TOKENS // length, WIDTH // dim, length, dim)
    q, k, v, d_out = (torch.randn(shape, dtype=DTYPE, device=device) for _ in range(4))
    angles = torch.rand(length, dim // 2, device=device)
    setting = (Rope(angles.cos(), angles.sin()), dim**-0.5, Rules())
    if kernel == "attention_forward":
        return lambda: forward(q, k, v, *setting, with_lse=True, tiles=tiles)
    out, lse = forward(q, k, v, *setting, with_lse=True)
    assert lse is not None
    for_query = kernel == "attention_d_query"
    return lambda: backward(
        d_out, q, k, v, out, lse, *setting,
        for_query=for_query, for_key=not for_query, tiles=tiles,
    )  # fmt: skip

"""Candidate tiles of the LoRA kernels (benchmarks/tuning.py measures them)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastgrow.kernels.calls import LoraCall, LoraGradient
from fastgrow.kernels.lora import (
    WIDTHS,
    NarrowTiles,
    backward,
    forward,
    narrow_key,
    narrow_tiles,
    product_key,
    product_tiles,
)
from fastgrow.kernels.matmul import MatmulTiles
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
ROWS = 16384
RANKS = (16, 64)
HEADLINE = (1024, 16)  # width and rank

# None of these spills on sm_90.
PRODUCTS = [
    MatmulTiles(64, 128, 64, 8, 4, 4),
    MatmulTiles(64, 256, 64, 8, 4, 3),
    MatmulTiles(128, 64, 64, 8, 4, 3),
    MatmulTiles(128, 128, 32, 8, 4, 4),
    MatmulTiles(128, 128, 64, 8, 4, 3),
    MatmulTiles(128, 128, 64, 8, 4, 4),
    MatmulTiles(128, 128, 64, 8, 8, 4),
    MatmulTiles(128, 256, 64, 8, 8, 3),
    MatmulTiles(256, 128, 64, 8, 8, 3),
]
NARROW = [
    NarrowTiles(32, 128, 4, 4),
    NarrowTiles(64, 64, 4, 3),
    NarrowTiles(64, 64, 4, 4),
    NarrowTiles(64, 128, 4, 2),
    NarrowTiles(64, 128, 4, 4),
    NarrowTiles(128, 64, 4, 3),
    NarrowTiles(128, 128, 4, 2),
    NarrowTiles(128, 128, 8, 3),
    NarrowTiles(64, 256, 8, 3),
]


def tunables(capability: int) -> list[Tunable[Any]]:
    """Return a tunable for every kernel and bucket that may have an entry in a table."""
    return [
        *(
            Tunable(
                kernel=kernel,
                bucket=product_key(DTYPE, width),
                default=product_tiles(DTYPE),
                others=PRODUCTS,
                function="low_rank_kernel",
                prepare=functools.partial(_product, kernel, width),
                capability=capability,
                rank=0 if width == HEADLINE[0] else 2,
            )
            for kernel in ("lora_forward", "lora_d_input")
            for width in WIDTHS
        ),
        *(
            Tunable(
                kernel="lora_narrow",
                bucket=narrow_key(DTYPE, rank),
                default=narrow_tiles(DTYPE),
                others=NARROW,
                function="narrow_kernel",
                prepare=functools.partial(_narrow, rank),
                capability=capability,
                rank=0 if rank == HEADLINE[1] else 2,
            )
            for rank in RANKS
        ),
    ]


def _product(kernel: str, width: int, device: str) -> Callable[[MatmulTiles], object]:
    """Prepare the product with a square weight, in the forward pass or for the gradient of x."""
    x, weight, a, b = _layer(width, RANKS[0], device)
    if kernel == "lora_forward":
        return lambda tiles: forward(LoraCall(x, weight, a, b, None, 1.0), tiles=tiles)
    return lambda tiles: backward(LoraGradient(x, None, None, weight, a, b, 1.0), tiles=tiles)


def _narrow(rank: int, device: str) -> Callable[[NarrowTiles], object]:
    """Prepare the gradient of b."""
    dy, _, a, b = _layer(WIDTHS[0], rank, device)
    u = torch.randn(ROWS, rank, dtype=DTYPE, device=device)
    return lambda tiles: backward(LoraGradient(dy, None, u, None, a, b, 1.0), narrow=tiles)


def _layer(width: int, rank: int, device: str) -> list[torch.Tensor]:
    """Return x or dy, weight, a and b of a square layer."""
    return [
        torch.randn(shape, dtype=DTYPE, device=device)
        for shape in ((ROWS, width), (width, width), (rank, width), (width, rank))
    ]

"""Candidate tiles of a head's kernels (benchmarks/tuning.py measures them)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from fastgrow.kernels.calls import LseCall, LseGradientCall
from fastgrow.kernels.linear_lse import SMALL, default_tiles, forward, key, logits_gradient
from fastgrow.kernels.matmul import MatmulTiles
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
WIDTH, VOCABULARY = 1024, 65536
SLICE = 8192  # words whose gradient is computed at once

# (block_m, block_n, block_k, group_m, num_warps, num_stages) that do not spill on sm_90.
SHAPES = {
    ("linear_lse", 8192): [
        *[(128, 256, 64, 8, 8, 3), (128, 256, 64, 8, 8, 4), (128, 256, 64, 16, 8, 4)],
        *[(256, 128, 64, 8, 8, 3), (256, 128, 64, 8, 8, 4), (64, 256, 64, 16, 4, 3)],
        *[(128, 128, 64, 8, 4, 3), (128, 128, 64, 16, 8, 3), (128, 128, 128, 8, 8, 2)],
        (128, 64, 64, 8, 4, 4),
    ],
    ("linear_lse_gradient", 8192): [
        *[(256, 128, 64, 8, 8, 3), (256, 128, 64, 8, 8, 4), (256, 128, 64, 16, 8, 3)],
        *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 16, 8, 4), (128, 128, 128, 8, 8, 2)],
        *[(128, 128, 64, 8, 4, 3), (64, 256, 64, 16, 8, 3), (128, 64, 64, 8, 4, 4)],
    ],
    ("linear_lse", SMALL): [
        *[(64, 128, 64, 1, 4, 4), (64, 128, 64, 1, 4, 5), (64, 128, 128, 1, 4, 3)],
        *[(64, 64, 64, 1, 4, 4), (64, 64, 128, 1, 4, 3), (64, 256, 64, 1, 8, 3)],
        *[(16, 128, 128, 1, 4, 3), (32, 128, 128, 1, 4, 3)],
    ],
    ("linear_lse_gradient", SMALL): [
        *[(64, 128, 64, 1, 4, 4), (64, 128, 64, 1, 4, 5), (64, 128, 128, 1, 4, 3)],
        *[(64, 64, 64, 1, 4, 4), (64, 64, 128, 1, 4, 3), (64, 256, 64, 1, 8, 3)],
        *[(16, 128, 128, 1, 4, 3), (32, 128, 128, 1, 4, 3)],
    ],
}


def tunables(capability: int) -> list[Tunable[MatmulTiles]]:
    """Return a tunable for both kernels, with many rows and with few."""
    return [
        Tunable(
            kernel=kernel,
            bucket=key(DTYPE, rows),
            default=default_tiles(kernel, DTYPE, rows, capability),
            others=[MatmulTiles(*shape) for shape in shapes],
            function=kernel.rpartition("_")[2] + "_kernel",
            prepare=functools.partial(_prepare, kernel, rows),
            capability=capability,
            rank=0 if rows > SMALL else 2,
        )
        for (kernel, rows), shapes in SHAPES.items()
    ]


def _prepare(kernel: str, rows: int, device: str) -> Callable[[MatmulTiles], object]:
    """Prepare one head with a bias, on random tensors.

    Logits have a head's size, and the gradients of words are as large as those of targets: an error
    in a gradient would not be detected next to much larger ones.
    """

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=DTYPE, device=device)

    heads = [random(rows, WIDTH)], [random(VOCABULARY, WIDTH) * WIDTH**-0.5], random(VOCABULARY)
    if kernel == "linear_lse":
        call = LseCall(*heads, torch.randint(VOCABULARY, (rows,), device=device))
        return lambda tiles: forward(call, tiles=tiles)
    targets = torch.randint(SLICE, (rows,), device=device)
    row = torch.ones(rows, device=device)
    # The variance of the logits is 2: 1 of the product and 1 of the bias.
    lse = (math.log(VOCABULARY) + 1) * row
    gradient = LseGradientCall(*heads, targets, lse, VOCABULARY * row, -row, None, [])
    out = torch.empty(rows, SLICE, dtype=DTYPE, device=device)
    return lambda tiles: (out, logits_gradient(gradient, 0, out, with_sums=True, tiles=tiles))

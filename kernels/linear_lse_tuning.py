"""Tiles of a head's kernels to choose from on a GPU (benchmarks/tuning.py says how)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastgrow.kernels.linear_logits import SMALL, Tiles, default_tiles, key, product
from fastgrow.kernels.linear_lse import forward
from fastgrow.kernels.linear_lse_backward import logits_gradient
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
WIDTH, VOCABULARY = 1024, 65536
SLICE = 8192  # words of which the gradient is made at once

FUNCTIONS = {"linear_lse": "lse_kernel", "linear_lse_gradient": "gradient_kernel"}
ROWS = (8192, SMALL)
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


def tunables(capability: int) -> list[Tunable[Tiles]]:
    """Both kernels, on many rows and on few."""
    return [
        Tunable(
            kernel=kernel,
            bucket=key(DTYPE, rows),
            default=default_tiles(kernel, DTYPE, rows, capability),
            others=[Tiles(*shape) for shape in shapes],
            function=FUNCTIONS[kernel],
            prepare=functools.partial(_prepare, kernel, rows),
            capability=capability,
            rank=0 if rows > SMALL else 2,
        )
        for (kernel, rows), shapes in SHAPES.items()
    ]


def _prepare(kernel: str, rows: int, device: str) -> Callable[[Tiles], object]:
    """One head with a bias, on random tensors."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=DTYPE, device=device)

    pairs = product([random(rows, WIDTH)], [random(VOCABULARY, WIDTH)], random(VOCABULARY))
    targets = torch.zeros(rows, dtype=torch.int64, device=device)
    if kernel == "linear_lse":
        return lambda tiles: forward(pairs, targets, with_mean=False, tiles=tiles)
    row = torch.ones(rows, device=device)
    out = torch.empty(rows, SLICE, dtype=DTYPE, device=device)
    return lambda tiles: logits_gradient(
        pairs, targets, 200 * row, row, row, None, 0, out, with_sums=True, tiles=tiles
    )

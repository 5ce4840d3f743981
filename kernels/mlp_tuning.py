"""Candidate configurations of the feed-forward layer (benchmarks/tuning.py measures them).

Each product has a candidate with `fused` = 1, the library's product and the pass after it, so a
table also decides whether to use the library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastgrow.kernels.calls import MlpHidden, MlpHiddenGradient, MlpOutput
from fastgrow.kernels.mlp import (
    ROWS,
    ProductChoice,
    bucket,
    d_hidden,
    default_product,
    hidden,
    output,
)
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
# K (terms) and N (columns) of each product.
SIZES = {
    "mlp_hidden": (1024, 4096),
    "mlp_hidden_kept": (1024, 4096),
    "mlp_d_hidden": (1024, 4096),
    "mlp_output": (4096, 1024),
}

LIBRARY = ProductChoice(128, 128, 64, 8, 8, 3, fused=1)
# (block_m, block_n, block_k, group_m, num_warps, num_stages) that do not spill on sm_90.
HIDDEN = [
    *[(128, 256, 64, 8, 8, 3), (128, 256, 64, 8, 8, 4), (128, 256, 64, 16, 8, 3)],
    *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 16, 8, 3), (128, 128, 64, 8, 8, 4)],
    *[(64, 256, 64, 8, 8, 3), (128, 128, 128, 8, 8, 2), (128, 64, 64, 8, 4, 4)],
]
HIDDEN_KEPT = [
    *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 16, 8, 3), (128, 128, 64, 8, 8, 4)],
    *[(64, 256, 64, 8, 8, 3), (64, 256, 64, 16, 8, 3), (128, 128, 128, 8, 8, 2)],
    *[(128, 64, 64, 8, 4, 3), (128, 64, 64, 8, 4, 4), (64, 128, 64, 8, 4, 3)],
]
SWIGLU = [
    *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 8, 8, 4), (128, 128, 64, 16, 8, 3)],
    *[(64, 128, 64, 8, 8, 3), (64, 128, 64, 16, 8, 4), (128, 64, 64, 8, 8, 3)],
    *[(128, 64, 64, 8, 8, 4), (128, 64, 64, 16, 8, 3), (64, 64, 64, 8, 4, 4)],
]
SWIGLU_KEPT = [*SWIGLU[3:], (128, 64, 128, 8, 8, 2), (64, 128, 128, 8, 8, 2), (64, 64, 64, 8, 4, 3)]
OUTPUT = [
    *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 16, 8, 3), (128, 128, 64, 8, 8, 4)],
    *[(128, 128, 128, 8, 8, 2), (64, 128, 64, 8, 4, 3), (64, 128, 64, 8, 4, 4)],
    *[(128, 64, 64, 8, 4, 3), (128, 64, 64, 8, 4, 4)],
]
D_HIDDEN = [
    *[(128, 128, 64, 8, 8, 3), (128, 128, 64, 16, 8, 3), (128, 128, 64, 8, 8, 4)],
    *[(128, 256, 64, 8, 8, 3), (128, 256, 64, 16, 8, 3), (128, 128, 128, 8, 8, 2)],
    *[(64, 128, 64, 8, 4, 3), (128, 64, 64, 8, 4, 3), (64, 256, 64, 8, 8, 3)],
]


# By product and epilogue.
TILES = {
    ("mlp_hidden", "gelu"): HIDDEN,
    ("mlp_hidden", "gelu_tanh"): HIDDEN,
    ("mlp_hidden", "swiglu"): SWIGLU,
    ("mlp_hidden_kept", "gelu"): HIDDEN_KEPT,
    ("mlp_hidden_kept", "gelu_tanh"): HIDDEN_KEPT,
    ("mlp_hidden_kept", "swiglu"): SWIGLU_KEPT,
    ("mlp_d_hidden", "gelu"): D_HIDDEN,
    ("mlp_d_hidden", "gelu_tanh"): D_HIDDEN,
    ("mlp_d_hidden", "swiglu"): D_HIDDEN,
    ("mlp_output", "plain"): OUTPUT,
    ("mlp_output", "residual"): OUTPUT,
}


def tunables(capability: int) -> list[Tunable[ProductChoice]]:
    """Return a tunable for every product and key that may have an entry in a table."""
    return [
        Tunable[ProductChoice](
            kernel=kernel,
            bucket=bucket(DTYPE, epilogue, *SIZES[kernel], rows),
            default=default_product(kernel, DTYPE, epilogue, capability=capability),
            others=[LIBRARY, *(ProductChoice(*shape) for shape in tiles)],
            function=kernel.removeprefix("mlp_").removesuffix("_kept") + "_kernel",
            prepare=functools.partial(_prepare, kernel, epilogue, rows),
            capability=capability,
            rank=_rank(epilogue, rows),
        )
        for (kernel, epilogue), tiles in TILES.items()
        for rows in ROWS
    ]


def _rank(epilogue: str, rows: int) -> int:
    """Return the rank: fastgrow's own models with training batches come first."""
    if epilogue in ("gelu_tanh", "swiglu"):
        return 2
    return 0 if rows == max(ROWS) else 1


def _prepare(
    kernel: str, epilogue: str, rows: int, device: str
) -> Callable[[ProductChoice], object]:
    """Prepare a product of random tensors; the hidden gradient with all results, as in training."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=DTYPE, device=device)

    K, N = SIZES[kernel]
    x = random(rows, K)
    if kernel == "mlp_output":
        residual = random(rows, N) if epilogue == "residual" else None
        last = MlpOutput(x, random(N, K), random(N), residual)
        return lambda product: output(last, product=product)
    if kernel == "mlp_d_hidden":
        down, pre = random(K, N), random(rows, N)
        pre_gate = random(rows, N) if epilogue == "swiglu" else None
        gradient = MlpHiddenGradient(x, down, pre, pre_gate, epilogue, True, True)
        return lambda product: d_hidden(gradient, product=product)
    gate = random(N, K) if epilogue == "swiglu" else None
    first = MlpHidden(x, random(N, K), gate, random(N), epilogue, kernel == "mlp_hidden_kept")
    return lambda product: hidden(first, product=product)

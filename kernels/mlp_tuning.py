"""The feed-forward layer's configurations to choose from on a GPU.

Each product may also be left to the library: its candidate with `fused` 1 is the library's product
with the pass after it, so that a table decides that too.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
# (d, hidden width)
SIZES = {"gelu": (1024, 4096), "gelu_tanh": (1024, 4096), "swiglu": (1024, 4096)}

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


def tunables(capability: int) -> list[Tunable[ProductChoice]]:
    """Every product under every key that may have an entry in a table."""
    found = []
    for activation, rows in itertools.product(SIZES, ROWS):
        at = (activation, *SIZES[activation], rows, capability)
        frozen, kept = (SWIGLU, SWIGLU_KEPT) if activation == "swiglu" else (HIDDEN, HIDDEN_KEPT)
        found += [
            _tunable(
                "mlp_hidden", *at, frozen, functools.partial(_hidden, activation, False, rows)
            ),
            _tunable(
                "mlp_hidden_kept", *at, kept, functools.partial(_hidden, activation, True, rows)
            ),
            _tunable("mlp_d_hidden", *at, D_HIDDEN, functools.partial(_d_hidden, activation, rows)),
        ]
    d, m = SIZES["gelu"]
    for added, rows in itertools.product(("plain", "residual"), ROWS):
        prepare = functools.partial(_output, added == "residual", rows)
        found.append(_tunable("mlp_output", added, m, d, rows, capability, OUTPUT, prepare))
    return found


def _rank(epilogue: str, rows: int) -> int:
    """The layer of the models that grow comes first, in batches of training."""
    if epilogue in ("gelu_tanh", "swiglu"):
        return 2
    return 0 if rows == max(ROWS) else 1


def _tunable(
    kernel: str,
    epilogue: str,
    K: int,
    N: int,
    rows: int,
    capability: int,
    tiles: Sequence[tuple[int, ...]],
    prepare: Callable[[str], Callable[[ProductChoice], object]],
) -> Tunable[ProductChoice]:
    return Tunable[ProductChoice](
        kernel=kernel,
        bucket=bucket(DTYPE, epilogue, K, N, rows),
        default=default_product(kernel, DTYPE, epilogue, capability=capability),
        others=[LIBRARY, *(ProductChoice(*shape) for shape in tiles)],
        function=kernel.removeprefix("mlp_").removesuffix("_kept") + "_kernel",
        prepare=prepare,
        capability=capability,
        rank=_rank(epilogue, rows),
    )


def _random(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, device=device)


def _hidden(
    activation: str, kept: bool, rows: int, device: str
) -> Callable[[ProductChoice], object]:
    d, m = SIZES[activation]
    x, up, bias = _random(device, rows, d), _random(device, m, d), _random(device, m)
    gate = _random(device, m, d) if activation == "swiglu" else None
    return lambda product: hidden(MlpHidden(x, up, gate, bias, activation, kept), product=product)


def _output(residual: bool, rows: int, device: str) -> Callable[[ProductChoice], object]:
    d, m = SIZES["gelu"]
    x, down, bias = _random(device, rows, m), _random(device, d, m), _random(device, d)
    added = _random(device, rows, d) if residual else None
    return lambda product: output(MlpOutput(x, down, bias, added), product=product)


def _d_hidden(activation: str, rows: int, device: str) -> Callable[[ProductChoice], object]:
    """As in training: with the activation and the bias's gradient."""
    d, m = SIZES[activation]
    dy, down, pre = _random(device, rows, d), _random(device, d, m), _random(device, rows, m)
    gate = _random(device, rows, m) if activation == "swiglu" else None
    return lambda product: d_hidden(
        MlpHiddenGradient(dy, down, pre, gate, activation, True, True), product=product
    )

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

from fastgrow.kernels.mlp import (
    ROWS,
    Product,
    bucket,
    d_hidden,
    d_hidden_product,
    hidden,
    hidden_product,
    output,
    output_product,
)
from fastgrow.kernels.tunable import Tunable

DTYPE = torch.bfloat16
# (d, hidden width)
SIZES = {"gelu": (1024, 4096), "gelu_tanh": (1024, 4096), "swiglu": (1024, 4096)}

LIBRARY = Product(1, 128, 128, 64, 8, 8, 3)
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


def tunables(capability: int) -> list[Tunable[Product]]:
    """Every product under every key that may have an entry in a table."""
    found = []
    for activation, rows in itertools.product(SIZES, ROWS):
        d, m = SIZES[activation]
        rank = _rank(activation, rows)
        key = bucket(DTYPE, activation, d, m, rows)
        gated = activation == "swiglu"
        for kernel, kept, tiles in (
            ("mlp_hidden", False, SWIGLU if gated else HIDDEN),
            ("mlp_hidden_kept", True, SWIGLU_KEPT if gated else HIDDEN_KEPT),
        ):
            default = hidden_product(DTYPE, activation, kept=kept, capability=capability)
            prepare = functools.partial(_hidden, activation, kept, rows)
            common = (default, tiles, prepare, capability, rank)
            found.append(_tunable(kernel, key, "hidden_kernel", *common))
        default = d_hidden_product(DTYPE, activation)
        prepare = functools.partial(_d_hidden, activation, rows)
        common = (default, D_HIDDEN, prepare, capability, rank)
        found.append(_tunable("mlp_d_hidden", key, "d_hidden_kernel", *common))
    d, m = SIZES["gelu"]
    for added, rows in itertools.product(("plain", "residual"), ROWS):
        key = bucket(DTYPE, added, m, d, rows)
        prepare = functools.partial(_output, added == "residual", rows)
        common = (output_product(DTYPE), OUTPUT, prepare, capability, _rank("gelu", rows))
        found.append(_tunable("mlp_output", key, "output_kernel", *common))
    return found


def _rank(activation: str, rows: int) -> int:
    """The layer of the models that grow comes first, in batches of training."""
    if activation != "gelu":
        return 2
    return 0 if rows == max(ROWS) else 1


def _tunable(
    kernel: str,
    key: str,
    function: str,
    default: Product,
    tiles: Sequence[tuple[int, ...]],
    prepare: Callable[[str], Callable[[Product], object]],
    capability: int,
    rank: int,
) -> Tunable[Product]:
    return Tunable[Product](
        kernel=kernel,
        bucket=key,
        default=default,
        others=[LIBRARY, *(Product(2, *shape) for shape in tiles)],
        function=function,
        prepare=prepare,
        capability=capability,
        rank=rank,
    )


def _random(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, device=device)


def _hidden(activation: str, kept: bool, rows: int, device: str) -> Callable[[Product], object]:
    d, m = SIZES[activation]
    x, up, bias = _random(device, rows, d), _random(device, m, d), _random(device, m)
    gate = _random(device, m, d) if activation == "swiglu" else None
    return lambda product: hidden(x, up, gate, bias, activation, kept=kept, product=product)


def _output(residual: bool, rows: int, device: str) -> Callable[[Product], object]:
    d, m = SIZES["gelu"]
    x, down, bias = _random(device, rows, m), _random(device, d, m), _random(device, d)
    added = _random(device, rows, d) if residual else None
    return lambda product: output(x, down, bias, added, product=product)


def _d_hidden(activation: str, rows: int, device: str) -> Callable[[Product], object]:
    """As in training: with the activation and the bias's gradient."""
    d, m = SIZES[activation]
    dy, down, pre = _random(device, rows, d), _random(device, d, m), _random(device, rows, m)
    gate = _random(device, rows, m) if activation == "swiglu" else None
    return lambda product: d_hidden(
        dy, down, pre, gate, activation, with_hidden=True, with_sums=True, product=product
    )

"""Launchers of the feed-forward layer's three products that have something to fuse.

Each product is made in one of two ways, as its configuration says: by one kernel with the rest of
the formula in its epilogue, or by the library, followed by one pass over its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.common import INTERPRETED, cdiv, dot_precision, on_device_of
from fastgrow.kernels.gpu import capability_of
from fastgrow.kernels.mlp_backward import d_hidden_kernel
from fastgrow.kernels.mlp_elementwise import activate_kernel, d_activate_kernel
from fastgrow.kernels.mlp_forward import hidden_kernel, output_kernel
from fastgrow.kernels.tuned import NAMES, chosen_once, measured


@dataclass(frozen=True)
class Product:
    """How a product is made: `fused` 2 by our kernel, with these tiles, and 1 by the library.

    The fields of the tiles are those of `fastgrow.kernels.matmul.MatmulTiles`.
    """

    fused: int
    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


# Numbers of rows whose configurations are measured.
ROWS = (2048, 16384)
# Rows and columns of a tile of the pass that differentiates, and rows that a program goes through.
PASS_M, PASS_N, PASS_ROWS = 16, 256, 128
PASS_BLOCK = 2048
# Columns of a tile of the hidden gradient that are differentiated at a time, if that makes no more
# than four parts.
PART_N = 32


def bucket(dtype: torch.dtype, activation: str, K: int, N: int, rows: int) -> str:
    """The key of a product's measured configuration, such as `bf16/gelu/K=1024/N=4096/M=16384`."""
    return f"{NAMES[dtype]}/{activation}/K={K}/N={N}/M={_rows_of(rows)}"


def _rows_of(rows: int) -> int:
    """The number of rows that stands for this one."""
    return ROWS[0] if rows <= 2 * ROWS[0] else ROWS[1]


def even(*sizes: int) -> bool:
    """Whether rows of these sizes are whole vectors: loads of others spill beside an epilogue."""
    return all(size % 16 == 0 for size in sizes)


def hidden_product(
    dtype: torch.dtype, activation: str, *, kept: bool, evenly: bool = True, capability: int = 90
) -> Product:
    """The rule for the first product; `evenly` says that its sizes are `even`."""
    if INTERPRETED:
        return Product(2, 128, 128, 64, 8, 4, 1)
    fused = 1 if kept or dtype == torch.float32 or not evenly else 2
    if capability < 90:
        # Operands pass through registers there.
        return Product(fused, 128, 64 if activation == "swiglu" else 128, 64, 8, 8, 3)
    if activation == "swiglu":
        return Product(fused, 128, 128, 64, 8, 8, 3)
    return Product(fused, 128, 256, 64, 8, 8, 3)


def output_product(dtype: torch.dtype) -> Product:
    """The rule for the second product."""
    return Product(2 if INTERPRETED else 1, 128, 128, 64, 8, 4, 1 if INTERPRETED else 3)


def d_hidden_product(dtype: torch.dtype, activation: str, *, evenly: bool = True) -> Product:
    """The rule for the hidden gradient's product; `evenly` says that its sizes are `even`."""
    if INTERPRETED:
        return Product(2, 128, 128, 64, 8, 4, 1)
    fused = 1 if dtype == torch.float32 or not evenly else 2
    return Product(fused, 128, 128, 64, 8, 8, 3)


def hidden(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    *,
    kept: bool,
    product: Product | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """f(x · upᵀ + bias), or silu(x · gateᵀ) ∘ (x · upᵀ + bias), of x [M, K] and up, gate [N, K].

    Returns:
        hidden [M, N], and with `kept` what the activation is of: x · upᵀ + bias, and x · gateᵀ
        where there is a gate. All contiguous, of x's dtype.
    """
    M, K = x.shape
    N = up.shape[0]
    product = product or _hidden_choice(x.dtype, activation, kept, K, N, _rows_of(M), x.device)
    if product.fused == 1:
        return _activated(x, up, gate, up_bias, activation, kept=kept)
    out = x.new_empty(M, N)
    pre = x.new_empty(M, N) if kept else None
    pre_gate = x.new_empty(M, N) if kept and gate is not None else None
    if out.numel() == 0:
        return out, pre, pre_gate
    up_bias = None if up_bias is None else up_bias.contiguous()
    with on_device_of(x):
        hidden_kernel[_grid(M, N, product)](
            x, up, gate, up_bias, out, pre, pre_gate,
            *x.stride(), *up.stride(), *(up if gate is None else gate).stride(), N, M, N, K,
            ACTIVATION=activation, **_constants(product, x, K),
        )  # fmt: skip
    return out, pre, pre_gate


@chosen_once
def _hidden_choice(
    dtype: torch.dtype,
    activation: str,
    keeps: bool,
    K: int,
    N: int,
    rows: int,
    device: torch.device,
) -> Product:
    kernel = "mlp_hidden_kept" if keeps else "mlp_hidden"
    found = measured(kernel, bucket(dtype, activation, K, N, rows), device, Product)
    return found or hidden_product(
        dtype, activation, kept=keeps, evenly=even(K, N), capability=capability_of(device)
    )


def _activated(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    *,
    kept: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    pre = F.linear(x, up, up_bias)
    pre_gate = None if gate is None else F.linear(x, gate)
    out = torch.empty_like(pre) if kept else pre
    if out.numel() > 0:
        with on_device_of(x):
            activate_kernel[(cdiv(out.numel(), PASS_BLOCK),)](
                pre, pre_gate, out, out.numel(),
                ACTIVATION=activation, BLOCK=PASS_BLOCK, INTERPRETED=INTERPRETED, num_warps=8,
            )  # fmt: skip
    return out, pre if kept else None, pre_gate if kept else None


def output(
    hidden: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
    *,
    product: Product | None = None,
) -> Tensor:
    """hidden · downᵀ + bias + residual, of hidden [M, K], down [N, K], residual [M, N].

    Returns:
        [M, N], contiguous, of the dtype that hidden's and the residual's promote to.
    """
    M, K = hidden.shape
    N = down.shape[0]
    added = "plain" if residual is None else "residual"
    product = product or _output_choice(hidden.dtype, added, K, N, _rows_of(M), hidden.device)
    if product.fused == 1:
        y = F.linear(hidden, down, down_bias)
        return y if residual is None else y + residual
    dtype = hidden.dtype
    if residual is not None:
        dtype = torch.promote_types(dtype, residual.dtype)
    y = torch.empty(M, N, dtype=dtype, device=hidden.device)
    if y.numel() == 0:
        return y
    strides = (0, 0) if residual is None else residual.stride()
    down_bias = None if down_bias is None else down_bias.contiguous()
    with on_device_of(hidden):
        output_kernel[_grid(M, N, product)](
            hidden, down, down_bias, residual, y,
            *hidden.stride(), *down.stride(), *strides, N, M, N, K,
            **_constants(product, hidden, K),
        )  # fmt: skip
    return y


@chosen_once
def _output_choice(
    dtype: torch.dtype, added: str, K: int, N: int, rows: int, device: torch.device
) -> Product:
    found = measured("mlp_output", bucket(dtype, added, K, N, rows), device, Product)
    return found or output_product(dtype)


def d_hidden(
    dy: Tensor,
    down: Tensor,
    pre: Tensor,
    pre_gate: Tensor | None,
    activation: str,
    *,
    with_hidden: bool,
    with_sums: bool,
    product: Product | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dy · down) ∘ f'(pre), of dy [M, K], down [K, N] and what `hidden` kept [M, N].

    Returns:
        d_pre [M, N]; the gate's gradient [M, N] where there is a gate; f(pre) [M, N] if
        `with_hidden`; d_pre's column sums [N] fp32 if `with_sums`.
    """
    M, K = dy.shape
    N = down.shape[1]
    product = product or _d_hidden_choice(dy.dtype, activation, K, N, _rows_of(M), dy.device)
    fused = product.fused == 2
    d_pre = torch.empty_like(pre) if fused else torch.mm(dy, down)
    d_gate = None if pre_gate is None else torch.empty_like(pre)
    out = torch.empty_like(pre) if with_hidden else None
    sums = None
    if with_sums:
        programs = cdiv(M, product.block_m if fused else PASS_ROWS)
        sums = torch.empty(programs, N, dtype=torch.float32, device=dy.device)
    if d_pre.numel() == 0:
        return d_pre, d_gate, out, None if sums is None else sums.sum(0)
    with on_device_of(dy):
        if fused:
            d_hidden_kernel[_grid(M, N, product)](
                dy, down, pre, pre_gate, d_pre, d_gate, out, sums,
                *dy.stride(), *down.stride(), N, M, N, K,
                ACTIVATION=activation, PART_N=PART_N, **_constants(product, dy, K),
            )  # fmt: skip
        else:
            d_activate_kernel[(cdiv(M, PASS_ROWS), cdiv(N, PASS_N))](
                d_pre, pre, pre_gate, d_pre, d_gate, out, sums, M, N,
                ACTIVATION=activation, BLOCK_M=PASS_M, BLOCK_N=PASS_N, ROWS=PASS_ROWS,
                INTERPRETED=INTERPRETED, num_warps=8,
            )  # fmt: skip
    return d_pre, d_gate, out, None if sums is None else sums.sum(0)


@chosen_once
def _d_hidden_choice(
    dtype: torch.dtype, activation: str, K: int, N: int, rows: int, device: torch.device
) -> Product:
    found = measured("mlp_d_hidden", bucket(dtype, activation, K, N, rows), device, Product)
    return found or d_hidden_product(dtype, activation, evenly=even(K, N))


def _grid(M: int, N: int, product: Product) -> tuple[int]:
    return (cdiv(M, product.block_m) * cdiv(N, product.block_n),)


def _constants(product: Product, x: Tensor, K: int) -> dict[str, object]:
    return {
        "BLOCK_M": product.block_m,
        "BLOCK_N": product.block_n,
        "BLOCK_K": product.block_k,
        "GROUP_M": product.group_m,
        "EVEN_K": K % product.block_k == 0,
        "PRECISION": dot_precision(x.dtype),
        "INTERPRETED": INTERPRETED,
        "num_warps": product.num_warps,
        "num_stages": product.num_stages,
    }

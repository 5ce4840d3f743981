"""Products of the feed-forward layer's forward pass, with the remaining steps as epilogues."""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.activation import activated
from fastgrow.kernels.matmul import accumulate, accumulate_two, tile_of


@triton.jit(do_not_specialize=["M"])
def hidden_kernel(
    X, UP, GATE, BIAS, HIDDEN, PRE, PRE_GATE,
    x_row, x_k, up_row, up_k, gate_row, gate_k, out_row, M, N, K,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write HIDDEN [M, N] = f(X · UPᵀ + bias), or silu(X · GATEᵀ) ∘ (X · UPᵀ + bias).

    Unless they are None, PRE and PRE_GATE get the pre-activations.
    """
    rows, cols, _, _ = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    pre = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GATE is None:
        pre = accumulate(
            pre, X, UP, rows, cols, x_row, x_k, up_row, up_k, M, N, K,
            BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
        )  # fmt: skip
        gate = pre
    else:
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        pre, gate = accumulate_two(
            pre, gate, X, UP, GATE, rows, cols, cols,
            x_row, x_k, up_row, up_k, gate_row, gate_k, M, N, N, K,
            BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
        )  # fmt: skip
    if BIAS is not None:
        pre += tl.load(BIAS + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    at = rows.to(tl.int64)[:, None] * out_row + cols[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    kind = HIDDEN.dtype.element_ty
    if PRE is not None:
        tl.store(PRE + at, pre.to(kind), mask=inside)
        if GATE is not None:
            tl.store(PRE_GATE + at, gate.to(kind), mask=inside)
    tl.store(HIDDEN + at, activated(pre, gate, ACTIVATION, INTERPRETED).to(kind), mask=inside)


@triton.jit(do_not_specialize=["M"])
def output_kernel(
    HIDDEN, DOWN, BIAS, RESIDUAL, Y,
    h_row, h_k, down_row, down_k, r_row, r_col, y_row, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write Y [M, N] = HIDDEN · DOWNᵀ + bias + residual."""
    rows, cols, _, _ = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    y = accumulate(
        y, HIDDEN, DOWN, rows, cols, h_row, h_k, down_row, down_k, M, N, K,
        BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
    )  # fmt: skip
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    if BIAS is not None:
        y += tl.load(BIAS + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    wide_rows, wide_cols = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :]
    if RESIDUAL is not None:
        of_residual = RESIDUAL + wide_rows * r_row + wide_cols * r_col
        y += tl.load(of_residual, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + wide_rows * y_row + cols[None, :], y.to(Y.dtype.element_ty), mask=inside)

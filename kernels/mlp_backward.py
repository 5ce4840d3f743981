"""The feed-forward layer's hidden gradient: dy · down, times the activation's derivative."""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.activation import differentiated
from fastgrow.kernels.matmul import accumulate, tile_of


@triton.jit
def _epilogue(
    d, rows, cols, tile_m, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    at = rows.to(tl.int64)[:, None] * out_row + cols[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    kind = D_PRE.dtype.element_ty
    pre = tl.load(PRE + at, mask=inside, other=0.0).to(tl.float32)
    gate = pre
    if PRE_GATE is not None:
        gate = tl.load(PRE_GATE + at, mask=inside, other=0.0).to(tl.float32)
    hidden, d_pre, d_gate = differentiated(d, pre, gate, ACTIVATION, INTERPRETED)
    tl.store(D_PRE + at, d_pre.to(kind), mask=inside)
    if D_GATE is not None:
        tl.store(D_GATE + at, d_gate.to(kind), mask=inside)
    if HIDDEN is not None:
        tl.store(HIDDEN + at, hidden.to(kind), mask=inside)
    if SUMS is not None:
        # Rows beyond M have d = 0.
        sums = SUMS + tile_m.to(tl.int64) * N + cols
        tl.store(sums, tl.sum(d_pre, 0), mask=cols < N)


@triton.jit
def _halves(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(x, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1]))


@triton.jit
def _epilogue_of_half(
    d, rows, first, tile_m, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART_N: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Of the columns from `first`, in one part or two."""
    if BLOCK_N <= PART_N:
        _epilogue(
            d, rows, first + tl.arange(0, BLOCK_N), tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N, ACTIVATION, INTERPRETED,
        )  # fmt: skip
    else:
        left, right = _halves(d, BLOCK_M, BLOCK_N)
        cols = first + tl.arange(0, BLOCK_N // 2)
        _epilogue(
            left, rows, cols, tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N, ACTIVATION, INTERPRETED,
        )  # fmt: skip
        _epilogue(
            right, rows, cols + BLOCK_N // 2, tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N, ACTIVATION, INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def d_hidden_kernel(
    DY, DOWN, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS,
    dy_row, dy_k, down_k, down_col, out_row, M, N, K,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr, PART_N: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """d_pre [M, N] = (DY · DOWN) ∘ f'(pre), with DOWN [K, N]; for SwiGLU also the gate's.

    Where they are given, HIDDEN gets f(pre) and SUMS [tiles of rows, N] each tile's column sums.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    d = accumulate(
        d, DY, DOWN, rows, cols, dy_row, dy_k, down_col, down_k, M, N, K,
        BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
    )  # fmt: skip
    # Few columns after each other: beside a whole tile of fp32 the registers do not suffice.
    first = tile_n * BLOCK_N
    if BLOCK_N <= PART_N:
        _epilogue(
            d, rows, first + tl.arange(0, BLOCK_N), tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N, ACTIVATION, INTERPRETED,
        )  # fmt: skip
    else:
        left, right = _halves(d, BLOCK_M, BLOCK_N)
        _epilogue_of_half(
            left, rows, first, tile_m, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
            ACTIVATION, BLOCK_M, BLOCK_N // 2, PART_N, INTERPRETED,
        )  # fmt: skip
        _epilogue_of_half(
            right, rows, first + BLOCK_N // 2, tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
            ACTIVATION, BLOCK_M, BLOCK_N // 2, PART_N, INTERPRETED,
        )  # fmt: skip

"""The feed-forward layer's hidden gradient: dy · down, times the activation's derivative."""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import stable_cache_key
from fastgrow.kernels.matmul import accumulate, tile_of
from fastgrow.kernels.mlp_elementwise import differentiate


@stable_cache_key
@triton.jit
def _epilogue(
    d, rows, first, tile_m, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART_N: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Differentiate BLOCK_N columns from `first` on, split into halves down to PART_N columns."""
    if BLOCK_N > PART_N:
        parts = tl.permute(tl.reshape(d, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1])
        left, right = tl.split(parts)
        _epilogue(
            left, rows, first, tile_m, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
            ACTIVATION, BLOCK_M, BLOCK_N // 2, PART_N, INTERPRETED,
        )  # fmt: skip
        _epilogue(
            right, rows, first + BLOCK_N // 2, tile_m,
            PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
            ACTIVATION, BLOCK_M, BLOCK_N // 2, PART_N, INTERPRETED,
        )  # fmt: skip
    else:
        cols = first + tl.arange(0, BLOCK_N)
        at = rows.to(tl.int64)[:, None] * out_row + cols[None, :]
        inside = (rows < M)[:, None] & (cols < N)[None, :]
        d_pre = differentiate(
            d, at, inside, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, ACTIVATION, INTERPRETED
        )
        if SUMS is not None:
            # Rows beyond M have d = 0.
            sums = SUMS + tile_m.to(tl.int64) * N + cols
            tl.store(sums, tl.sum(d_pre, 0), mask=cols < N)


@triton.jit(do_not_specialize=["M"])
def d_hidden_kernel(
    DY, DOWN, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS,
    dy_row, dy_k, down_k, down_col, out_row, M, N, K,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr, PART_N: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write D_PRE [M, N] = (DY · DOWN) ∘ f'(pre), with DOWN [K, N]; for SwiGLU also D_GATE.

    Unless they are None, HIDDEN gets f(pre) and SUMS [tiles of rows, N] each tile's column sums.
    """
    rows, cols, tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    d = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    d = accumulate(
        d, DY, DOWN, rows, cols, dy_row, dy_k, down_col, down_k, M, N, K,
        BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
    )  # fmt: skip
    # A few columns at a time, because the registers do not suffice for two whole tiles in fp32.
    _epilogue(
        d, rows, tile_n * BLOCK_N, tile_m,
        PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, out_row, M, N,
        ACTIVATION, BLOCK_M, BLOCK_N, max(PART_N, BLOCK_N // 4), INTERPRETED,
    )  # fmt: skip

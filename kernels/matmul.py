"""Tiles of a matrix product A · Bᵀ, for kernels with an epilogue.

A is [M, K] and B [N, K], with any strides. A stride of 1 is a constant for the compiler, so a
transposed operand is read equally fast. Sums are fp32. On Hopper both operands are loaded to shared
memory, `num_stages` tiles ahead, for the matrix units (HGMMA).
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastgrow.kernels.common import INTERPRETED, cdiv, dot_precision, operand


@dataclass(frozen=True)
class MatmulTiles:
    """Rows, columns and terms that a program multiplies at a time, and compile options.

    `group_m` rows of tiles are computed before the next ones start, because they share the columns'
    operand in the cache.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int

    def grid(self, M: int, N: int) -> tuple[int]:
        """Return the grid with one program per tile of an [M, N] result."""
        return (cdiv(M, self.block_m) * cdiv(N, self.block_n),)

    def constants(self, x: Tensor, K: int) -> dict[str, object]:
        """Return the kernels' keyword arguments for products of x with K terms."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": self.group_m,
            "EVEN_K": K % self.block_k == 0,
            "PRECISION": dot_precision(x.dtype),
            "INTERPRETED": INTERPRETED,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@triton.jit
def tile_of(
    program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):  # fmt: skip
    """Return the rows and columns of the program's tile of an [M, N] result, and its indices."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = program // (GROUP_M * tiles_n) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    tile_m, tile_n = first + within % height, within // height
    rows, cols = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, cols, tile_m, tile_n


@triton.jit
def accumulate(
    acc, A, B, rows, cols, a_row, a_k, b_col, b_k, M, N, K,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return acc + A[rows] · B[cols]ᵀ, with acc [len(rows), len(cols)] fp32.

    Rows beyond M and columns beyond N are read as zeros. EVEN_K: K is a multiple of BLOCK_K.
    """
    acc, _ = accumulate_two(
        acc, acc, A, B, None, rows, cols, cols, a_row, a_k, b_col, b_k, b_col, b_k, M, N, N, K,
        BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
    )  # fmt: skip
    return acc


@triton.jit
def accumulate_two(
    acc, acc_2, A, B, B_2, rows, cols, cols_2, a_row, a_k, b_col, b_k, b2_col, b2_k, M, N, N_2, K,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return acc + A[rows] · B[cols]ᵀ and acc_2 + A[rows] · B_2[cols_2]ᵀ, reading A once.

    As in `accumulate`. B_2 is [N_2, K], and `cols_2` and `cols` may differ in length. Without B_2,
    acc_2 is returned unchanged.
    """
    k = tl.arange(0, BLOCK_K)
    a_from = A + rows.to(tl.int64)[:, None] * a_row + k.to(tl.int64)[None, :] * a_k
    b_from = B + cols.to(tl.int64)[None, :] * b_col + k.to(tl.int64)[:, None] * b_k
    row_ok, col_ok, col2_ok = (rows < M)[:, None], (cols < N)[None, :], (cols_2 < N_2)[None, :]
    a_step, b_step = BLOCK_K * tl.cast(a_k, tl.int64), BLOCK_K * tl.cast(b_k, tl.int64)
    b2_step = BLOCK_K * tl.cast(b2_k, tl.int64)
    if B_2 is not None:
        b2_from = B_2 + cols_2.to(tl.int64)[None, :] * b2_col + k.to(tl.int64)[:, None] * b2_k
    for k0 in tl.range(0, K, BLOCK_K):
        a_ok, b_ok, b2_ok = row_ok, col_ok, col2_ok
        if not EVEN_K:
            k_ok = k < K - k0
            a_ok, b_ok = row_ok & k_ok[None, :], col_ok & k_ok[:, None]
            b2_ok = col2_ok & k_ok[:, None]
        a = operand(tl.load(a_from, mask=a_ok, other=0.0), INTERPRETED)
        b = operand(tl.load(b_from, mask=b_ok, other=0.0), INTERPRETED)
        if B_2 is not None:
            b2 = operand(tl.load(b2_from, mask=b2_ok, other=0.0), INTERPRETED)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if B_2 is not None:
            acc_2 = tl.dot(a, b2, acc_2, input_precision=PRECISION)
            b2_from += b2_step
        a_from += a_step
        b_from += b_step
    return acc, acc_2

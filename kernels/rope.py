"""Rotary positions in one pass, and the inverse, which is the gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgrow.kernels.common import as_strided_rows, on_device_of
from fastgrow.kernels.rotation import load_rotated, load_rotation

FEW_ROWS = 16


# Lengths and positions grow from token to token: no kernel is compiled for one of them.
@triton.jit(do_not_specialize=["positions_b", "HEADS", "LENGTH", "OFFSET", "n_positions"])
def rope_kernel(
    X, COS, SIN, POSITIONS, OUT,
    x_b, x_h, x_t, o_b, o_h, o_t, table_stride, positions_b,
    HEADS, LENGTH, OFFSET, n_positions,
    D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    n_blocks = tl.cdiv(LENGTH, BLOCK_T)
    head, block = program // n_blocks, program % n_blocks
    b, h = (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)
    rows = block * BLOCK_T + tl.arange(0, BLOCK_T)
    row_ok = rows < LENGTH
    positions = rows + OFFSET
    if POSITIONS is not None:
        positions = tl.load(POSITIONS + b * positions_b + rows, mask=row_ok, other=0)
    cos, sin = load_rotation(COS, SIN, positions, n_positions, table_stride, R, BLOCK_D)
    if INVERSE:
        sin = -sin
    y = load_rotated(
        X + b * x_b + h * x_h, rows.to(tl.int64) * x_t, row_ok, cos, sin, D, R, BLOCK_D
    )
    d = tl.arange(0, BLOCK_D)
    to = OUT + b * o_b + h * o_h + rows.to(tl.int64)[:, None] * o_t + d[None, :]
    tl.store(to, y.to(OUT.dtype.element_ty), mask=row_ok[:, None] & (d < D)[None, :])


def empty_rotated(x: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] laid out as [B, T, H, D], as projections leave it and SDPA's kernels read it."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None,
    offset: int,
    *,
    inverse: bool,
) -> torch.Tensor:
    """Rotate x [B, H, T, D] by `position_ids` [T] or [B, T], or by offset … offset + T − 1.

    Args:
        cos, sin: [positions, R/2] float32, contiguous.
        inverse: rotate back.
    """
    out = empty_rotated(x)
    if out.numel() == 0:
        return out
    x = as_strided_rows(x)
    batch, heads, length, dim = x.shape
    block_d = max(16, triton.next_power_of_2(dim))
    block_t = FEW_ROWS if length <= FEW_ROWS else max(FEW_ROWS, 4096 // block_d)
    of_rows = 0 if position_ids is None or position_ids.dim() == 1 else position_ids.stride(0)
    with on_device_of(x):
        rope_kernel[(triton.cdiv(length, block_t) * batch * heads,)](
            x, cos, sin, position_ids, out,
            *x.stride()[:3], *out.stride()[:3], cos.stride(0), of_rows,
            heads, length, offset, cos.shape[0],
            D=dim, R=2 * cos.shape[1], BLOCK_D=block_d, BLOCK_T=block_t, INVERSE=inverse,
            num_warps=4,
        )  # fmt: skip
    return out

"""Rotary positions, as pieces for other kernels and as a kernel of its own.

Feature i < R/2 is paired with feature i + R/2 (rotate-half); features from R on stay as they are:

    y_i = x_i · cos_i + x_partner(i) · sin_i        with sin negated for i < R/2

The inverse is the same with sin negated everywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgrow.kernels.common import cdiv, contiguous_like, next_power_of_2, on_device_of


@triton.jit
def partner_of(R: tl.constexpr, BLOCK_D: tl.constexpr):
    """For each feature, the one it is rotated with; its own index from R on."""
    d = tl.arange(0, BLOCK_D)
    half: tl.constexpr = R // 2
    return tl.where(d < half, d + half, tl.where(d < R, d - half, d))


@triton.jit
def load_rotation(
    COS, SIN, positions, n_positions, table_stride, R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """cos and signed sin [rows, BLOCK_D] for rows at the given positions.

    Positions outside the table take its first or last row: ids are not checked on the host.
    """
    d = tl.arange(0, BLOCK_D)
    half: tl.constexpr = R // 2
    rows = tl.minimum(tl.maximum(positions, 0), n_positions - 1).to(tl.int64)
    at = rows[:, None] * table_stride + (d % half)[None, :]
    rotates = (d < R)[None, :]
    cos = tl.load(COS + at, mask=rotates, other=1.0)
    sin = tl.load(SIN + at, mask=rotates, other=0.0)
    return cos, tl.where((d < half)[None, :], -sin, sin)


@triton.jit
def rotate_back(x, cos, sin, R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse rotation of a tile in registers."""
    partner = tl.broadcast_to(partner_of(R, BLOCK_D)[None, :], x.shape)
    y = x * cos - tl.gather(x, partner, 1) * sin
    if R < BLOCK_D:
        y = tl.where((tl.arange(0, BLOCK_D) < R)[None, :], y, x)
    return y


@triton.jit
def load_rotated(
    X, offsets, row_ok, cos, sin, D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The rows of X at int64 offsets, rotated, [rows, BLOCK_D] fp32.

    The partners are a second load of the same lines.
    """
    d = tl.arange(0, BLOCK_D)
    mask = row_ok[:, None] & (d < D)[None, :]
    base = X + offsets[:, None]
    x = tl.load(base + d[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(base + partner_of(R, BLOCK_D)[None, :], mask=mask, other=0.0)
    y = x * cos + partner.to(tl.float32) * sin
    if R < D:
        # What is not rotated may be infinite, and 0 times that is NaN.
        y = tl.where((d < R)[None, :], y, x)
    return y


@triton.jit(do_not_specialize=["positions_b", "LENGTH", "n_positions"])
def _rotate_kernel(
    X, COS, SIN, POSITIONS, OUT, NORMS,
    x_b, x_h, x_t, o_b, o_h, o_t, table_stride, positions_b,
    HEADS, LENGTH, n_positions,
    D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    n_blocks = tl.cdiv(LENGTH, BLOCK_T)
    head, block = program // n_blocks, program % n_blocks
    b, h = (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)
    rows = block * BLOCK_T + tl.arange(0, BLOCK_T)
    row_ok = rows < LENGTH
    positions = rows
    if POSITIONS is not None:
        positions = tl.load(POSITIONS + b * positions_b + rows, mask=row_ok, other=0)
    cos, sin = load_rotation(COS, SIN, positions, n_positions, table_stride, R, BLOCK_D)
    y = load_rotated(
        X + b * x_b + h * x_h, rows.to(tl.int64) * x_t, row_ok, cos, sin, D, R, BLOCK_D
    )
    d = tl.arange(0, BLOCK_D)
    to = OUT + b * o_b + h * o_h + rows.to(tl.int64)[:, None] * o_t + d[None, :]
    tl.store(to, y.to(OUT.dtype.element_ty), mask=row_ok[:, None] & (d < D)[None, :])
    tl.store(NORMS + program, tl.sqrt(tl.max(tl.sum(y * y, 1), 0)))


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate x [B, H, T, D] by position: 0 … T − 1, or `position_ids` [T] or [B, T].

    Returns:
        The rotated tensor, contiguous, of x's dtype; and the largest norm of a row for each block
        of rows, [B · H, blocks] float32, which a bound on attention's scores follows from.
    """
    batch, heads, length, dim = x.shape
    block_d = max(16, next_power_of_2(dim))
    block_t = max(16, 4096 // block_d)
    n_blocks = cdiv(length, block_t)
    out = contiguous_like(x)
    norms = x.new_empty((batch * heads, n_blocks), dtype=torch.float32)
    if x.numel() == 0:
        return out, norms
    of_rows = 0 if position_ids is None or position_ids.dim() == 1 else position_ids.stride(0)
    with on_device_of(x):
        _rotate_kernel[(n_blocks * batch * heads,)](
            x, cos, sin, position_ids, out, norms,
            *x.stride()[:3], *out.stride()[:3], cos.stride(0), of_rows,
            heads, length, cos.shape[0],
            D=dim, R=2 * cos.shape[1], BLOCK_D=block_d, BLOCK_T=block_t, num_warps=4,
        )  # fmt: skip
    return out, norms

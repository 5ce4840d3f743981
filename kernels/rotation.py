"""Rotary positions, as pieces for other kernels and as a kernel of its own.

Feature i < R/2 is paired with feature i + R/2 (rotate-half); features from R on stay as they are:

    y_i = x_i · cos_i + x_partner(i) · sin_i        with sin negated for i < R/2

The inverse is the same with sin negated everywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrow.kernels.common import as_strided_rows, cdiv, next_power_of_2, on_device_of

FEW_ROWS = 16


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


@triton.jit
def load_rotation_of(
    p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
    R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`load_rotation` for the tokens at key indices p of batch row b."""
    positions = p
    if POSITIONS is not None:
        known = (p >= 0) & (p < KEYS)
        positions = tl.load(POSITIONS + b * positions_b + p, mask=known, other=0)
    return load_rotation(COS, SIN, positions, n_positions, table_stride, R, BLOCK_D)


@triton.jit
def load_queries(
    Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
    D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The rows of Q at int64 offsets, [rows, BLOCK_D] fp32; rotated unless COS is None.

    p are the indices of their keys.
    """
    if COS is None:
        d = tl.arange(0, BLOCK_D)
        mask = row_ok[:, None] & (d < D)[None, :]
        q = tl.load(Q + offsets[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        cos, sin = load_rotation_of(
            p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS, R, BLOCK_D
        )
        q = load_rotated(Q, offsets, row_ok, cos, sin, D, R, BLOCK_D)
    return q


# Lengths and positions grow from token to token: no kernel is compiled for one of them.
@triton.jit(do_not_specialize=["positions_b", "n_positions", "HEADS", "LENGTH", "OFFSET"])
def rotate_kernel(
    X, OUT, NORMS, COS, SIN, POSITIONS, table_stride, positions_b, n_positions,
    x_b, x_h, x_t, o_b, o_h, o_t, HEADS, LENGTH, OFFSET,
    D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """OUT, and where NORMS is given the largest norm of a row of each block of rows."""
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
    if NORMS is not None:
        tl.store(NORMS + program, tl.sqrt(tl.max(tl.sum(y * y, 1), 0)))


# COS, SIN and POSITIONS of kernels with their table_stride, positions_b and n_positions.
Rotation = tuple[Tensor | None, Tensor | None, Tensor | None, int, int, int]
NO_ROTATION: Rotation = (None, None, None, 0, 0, 0)


def rotation_arguments(cos: Tensor, sin: Tensor, position_ids: Tensor | None) -> Rotation:
    """What kernels take of a table [positions, R/2] and `position_ids` [T], [1, T] or [B, T]."""
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        cos, sin = cos.float(), sin.float()
    cos, sin, of_rows = cos.contiguous(), sin.contiguous(), 0
    if position_ids is not None:
        # A row for all sequences is read as such, without a stride.
        shared = position_ids.dim() == 2 and position_ids.shape[0] == 1
        position_ids = (position_ids[0] if shared else position_ids).contiguous()
        of_rows = position_ids.stride(0) if position_ids.dim() == 2 else 0
    return cos, sin, position_ids, cos.stride(0), of_rows, cos.shape[0]


def rotate(
    x: Tensor,
    rotation: Rotation,
    out: Tensor,
    *,
    offset: int = 0,
    inverse: bool = False,
    with_norms: bool = False,
) -> Tensor | None:
    """Write x [B, H, T, D] to `out`, each token rotated by its position.

    Args:
        rotation: of `rotation_arguments`; without positions they are offset … offset + T − 1.
        inverse: rotate back.
        with_norms: whether norms are asked for.

    Returns:
        The largest norm of a rotated row for each block of rows, [B · H, blocks] float32, which a
        bound on attention's scores follows from; None without `with_norms`.
    """
    batch, heads, length, dim = x.shape
    block_d = block_of(dim)
    block_t = FEW_ROWS if length <= FEW_ROWS else max(FEW_ROWS, 4096 // block_d)
    n_blocks = cdiv(length, block_t)
    norms = None
    if with_norms:
        norms = x.new_empty((batch * heads, n_blocks), dtype=torch.float32)
    if x.numel() == 0:
        return norms
    x = as_strided_rows(x)
    cos = rotation[0]
    assert cos is not None
    with on_device_of(x):
        rotate_kernel[(n_blocks * batch * heads,)](
            x, out, norms, *rotation, *x.stride()[:3], *out.stride()[:3], heads, length, offset,
            D=dim, R=2 * cos.shape[1], BLOCK_D=block_d, BLOCK_T=block_t, INVERSE=inverse,
            num_warps=4,
        )  # fmt: skip
    return norms


def block_of(dim: int) -> int:
    """Width of a tile that holds `dim` features."""
    return max(16, next_power_of_2(dim))

"""Rotary positions, as functions for other kernels and as a separate kernel.

Feature i < R/2 is paired with feature i + R/2 (rotate-half); features from R on are unchanged:

    y_i = x_i · cos_i + x_partner(i) · sin_i        with sin negated for i < R/2

The inverse is the same with sin negated everywhere.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import load_rows, store_rows


@triton.jit
def partner_of(R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the index of each feature's partner; from R on, the feature's own index."""
    d = tl.arange(0, BLOCK_D)
    half: tl.constexpr = R // 2
    return tl.where(d < half, d + half, tl.where(d < R, d - half, d))


@triton.jit
def load_rotation(
    COS, SIN, positions, n_positions, table_stride, R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Load cos and signed sin [rows, BLOCK_D] for rows at the given positions.

    The host does not check position ids; positions outside the table use its first or last row.
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
    """Apply the inverse rotation to a tile in registers."""
    partner = tl.broadcast_to(partner_of(R, BLOCK_D)[None, :], x.shape)
    y = x * cos - tl.gather(x, partner, 1) * sin
    if R < BLOCK_D:
        y = tl.where((tl.arange(0, BLOCK_D) < R)[None, :], y, x)
    return y


@triton.jit
def load_rotated(
    X, offsets, row_ok, cos, sin, D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Load the rows of X at int64 offsets, rotated, [rows, BLOCK_D] fp32.

    The partners are a second load of the same cache lines.
    """
    d = tl.arange(0, BLOCK_D)
    mask = row_ok[:, None] & (d < D)[None, :]
    base = X + offsets[:, None]
    x = tl.load(base + d[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(base + partner_of(R, BLOCK_D)[None, :], mask=mask, other=0.0)
    y = x * cos + partner.to(tl.float32) * sin
    if R < D:
        # Features that are not rotated may be infinite, and 0 times that is NaN.
        y = tl.where((d < R)[None, :], y, x)
    return y


@triton.jit
def load_rotation_of(
    p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
    R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Call `load_rotation` for the tokens at key indices p of batch row b."""
    positions = p
    if POSITIONS is not None:
        known = (p >= 0) & (p < KEYS)
        positions = tl.load(POSITIONS + b * positions_b + p, mask=known, other=0)
    return load_rotation(COS, SIN, positions, n_positions, table_stride, R, BLOCK_D)


@triton.jit
def load_queries(
    Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
    factor, D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load factor · the rows of Q at int64 offsets, [rows, BLOCK_D] fp32.

    They are rotated unless COS is None. p are the key indices of the rows.
    """
    if COS is None:
        q = load_rows(Q, offsets, row_ok, D, BLOCK_D).to(tl.float32)
    else:
        cos, sin = load_rotation_of(
            p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS, R, BLOCK_D
        )
        q = load_rotated(Q, offsets, row_ok, cos, sin, D, R, BLOCK_D)
    return q * tl.cast(factor, tl.float32)


# Lengths and positions change from token to token, so no kernel is specialised on them.
@triton.jit(do_not_specialize=["positions_b", "n_positions", "HEADS", "LENGTH", "OFFSET"])
def rotate_kernel(
    X, OUT, NORMS, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr,
    x_b, x_h, x_t, o_b, o_h, o_t, HEADS, LENGTH, OFFSET,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """Write OUT and, unless NORMS is None, the largest norm of a row in each block of rows."""
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
    store_rows(OUT + b * o_b + h * o_h, rows.to(tl.int64) * o_t, y, row_ok, D, BLOCK_D)
    if NORMS is not None:
        tl.store(NORMS + program, tl.sqrt(tl.max(tl.sum(y * y, 1), 0)))

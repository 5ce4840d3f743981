"""Gradients of layer and root-mean-square normalisation.

With x̂ = (s − mean) · rstd and g = dy · weight, over a row of D features:

    ds = rstd · (g − mean(g) − x̂ · mean(g · x̂)) + the gradient of s that does not come through x̂
    dweight = Σ dy · x̂,   dbias = Σ dy     over all rows

Without a mean (root-mean-square norm) there is no term mean(g). Sums over rows are computed in two
steps without atomics: each program sums its rows, then one kernel adds the programs' sums.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    D_Y, D_TOTAL, TOTAL, MEAN, RSTD, WEIGHT, DX, D_WEIGHT, D_BIAS,
    dy_stride, d_total_stride, total_stride, rows,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write DX and partial sums D_WEIGHT and D_BIAS [programs, D] in fp32 of every n-th tile.

    With DX a tile contains whole rows; otherwise the grid's second axis is over the features.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_weight = tl.zeros([BLOCK_D], tl.float32)
    d_bias = tl.zeros([BLOCK_D], tl.float32)
    if WEIGHT is not None and DX is not None:
        weight = tl.load(WEIGHT + column, column < D, other=0.0)
    for tile in tl.range(program, tl.cdiv(rows, BLOCK_M), programs, num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        dy = _weighted(D_Y, None, row, dy_stride, column, inside, D)
        x_hat = _normalised(TOTAL, MEAN, RSTD, row, total_stride, column, inside, rows, D)
        if D_WEIGHT is not None:
            d_weight += tl.sum(dy * x_hat, 0)
        if D_BIAS is not None:
            d_bias += tl.sum(dy, 0)
        if DX is not None:
            g = dy
            if WEIGHT is not None:
                g *= weight.to(tl.float32)[None, :]
            dx = g - x_hat * (tl.sum(g * x_hat, 1) / D)[:, None]
            if MEAN is not None:
                dx -= (tl.sum(g, 1) / D)[:, None]
            dx *= tl.load(RSTD + row, row < rows, other=0.0)[:, None]
            _store(DX, D_TOTAL, dx, row, d_total_stride, column, inside, D)
    place = program.to(tl.int64) * D + column
    if D_WEIGHT is not None:
        tl.store(D_WEIGHT + place, d_weight, column < D)
    if D_BIAS is not None:
        tl.store(D_BIAS + place, d_bias, column < D)


@triton.jit(do_not_specialize=["rows"])
def wide_backward_kernel(
    D_Y, D_TOTAL, TOTAL, MEAN, RSTD, WEIGHT, DX,
    dy_stride, d_total_stride, total_stride, rows,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write DX of one row per program, BLOCK_D features at a time; the row is read twice."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, BLOCK_M)
    of_g = tl.zeros([BLOCK_M], tl.float32)
    of_product = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        x_hat = _normalised(TOTAL, MEAN, RSTD, row, total_stride, column, inside, rows, D)
        g = _weighted(D_Y, WEIGHT, row, dy_stride, column, inside, D)
        of_product += tl.sum(g * x_hat, 1)
        if MEAN is not None:
            of_g += tl.sum(g, 1)
    rstd = tl.load(RSTD + row)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        x_hat = _normalised(TOTAL, MEAN, RSTD, row, total_stride, column, inside, rows, D)
        g = _weighted(D_Y, WEIGHT, row, dy_stride, column, inside, D)
        dx = rstd[:, None] * (g - (of_g / D)[:, None] - x_hat * (of_product / D)[:, None])
        _store(DX, D_TOTAL, dx, row, d_total_stride, column, inside, D)


@triton.jit(do_not_specialize=["programs"])
def sum_kernel(
    D_WEIGHT_PARTS, D_BIAS_PARTS, D_WEIGHT, D_BIAS, programs,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the programs' sums [programs, D]; the grid's axis 1 is the parameter (weight, bias)."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    if tl.program_id(1) == 0:
        if D_WEIGHT is not None:
            _sum(D_WEIGHT_PARTS, D_WEIGHT, column, programs, D, BLOCK_M, BLOCK_D)
    elif D_BIAS is not None:
        _sum(D_BIAS_PARTS, D_BIAS, column, programs, D, BLOCK_M, BLOCK_D)


@triton.jit
def _sum(
    PARTS, OUT, column, programs,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    parts = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, programs, BLOCK_M):
        program = start + tl.arange(0, BLOCK_M)
        inside = (program < programs)[:, None] & (column < D)[None, :]
        parts += tl.load(PARTS + program[:, None] * D + column[None, :], inside, other=0.0)
    tl.store(OUT + column, tl.sum(parts, 0).to(OUT.dtype.element_ty), column < D)


@triton.jit
def _normalised(
    TOTAL, MEAN, RSTD, row, total_stride, column, inside, rows, D: tl.constexpr
):  # fmt: skip
    """Load x̂; 0 in rows and columns outside."""
    x = tl.load(TOTAL + row[:, None] * total_stride + column[None, :], inside, other=0.0)
    x = x.to(tl.float32)
    if MEAN is not None:
        mean = tl.load(MEAN + row, row < rows, other=0.0)
        x = tl.where((column < D)[None, :], x - mean[:, None], 0.0)
    return x * tl.load(RSTD + row, row < rows, other=0.0)[:, None]


@triton.jit
def _weighted(D_Y, WEIGHT, row, dy_stride, column, inside, D: tl.constexpr):
    g = tl.load(D_Y + row[:, None] * dy_stride + column[None, :], inside, other=0.0)
    g = g.to(tl.float32)
    if WEIGHT is not None:
        g *= tl.load(WEIGHT + column, column < D, other=0.0).to(tl.float32)[None, :]
    return g


@triton.jit
def _store(DX, D_TOTAL, dx, row, d_total_stride, column, inside, D: tl.constexpr):
    """Write the gradient through y plus D_TOTAL, the gradient that does not come through y."""
    if D_TOTAL is not None:
        other = D_TOTAL + row[:, None] * d_total_stride + column[None, :]
        dx += tl.load(other, inside, other=0.0).to(tl.float32)
    tl.store(DX + row[:, None] * D + column[None, :], dx.to(DX.dtype.element_ty), inside)

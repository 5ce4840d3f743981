"""Layer and root-mean-square normalisation of rows, including the addition of the residual.

Strides and sizes are in elements. A row is summed first, and then the squares of the differences
from its mean, from the same registers, so there is no cancellation if the mean is large.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    X, RESIDUAL, WEIGHT, BIAS, Y, TOTAL, MEAN, RSTD,
    x_stride, residual_stride, rows, eps,
    D: tl.constexpr, CENTRED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Normalise rows of D ≤ BLOCK_D features, BLOCK_M rows per program."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    total = _total(X, RESIDUAL, TOTAL, row, x_stride, residual_stride, column, inside, D)
    centred = total
    if CENTRED:
        mean = tl.sum(total, 1) / D
        centred = tl.where((column < D)[None, :], total - mean[:, None], 0.0)
        if MEAN is not None:
            tl.store(MEAN + row, mean, row < rows)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + tl.cast(eps, tl.float32))
    if RSTD is not None:
        tl.store(RSTD + row, rstd, row < rows)
    y = _scaled(centred * rstd[:, None], WEIGHT, BIAS, column, D)
    _store(Y, TOTAL, y, total, row, column, inside, D)


@triton.jit(do_not_specialize=["rows"])
def wide_forward_kernel(
    X, RESIDUAL, WEIGHT, BIAS, Y, TOTAL, MEAN, RSTD,
    x_stride, residual_stride, rows, eps,
    D: tl.constexpr, CENTRED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Normalise one row per program, BLOCK_D features at a time.

    The row is read twice, the second time from the L2 cache. Statistics of two parts are merged as
    in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), equation 2.1.
    """
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, BLOCK_M)
    mean = tl.zeros([BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        part = _total(X, RESIDUAL, TOTAL, row, x_stride, residual_stride, column, inside, D)
        if CENTRED:
            here = tl.cast(tl.minimum(D - start, BLOCK_D), tl.float32)
            part_mean = tl.sum(part, 1) / here
            part = tl.where(inside, part - part_mean[:, None], 0.0)
            apart = part_mean - mean
            share = here / (start + here)
            squares += apart * apart * (start * share)
            mean += apart * share
        squares += tl.sum(part * part, 1)
    rstd = tl.rsqrt(squares / D + tl.cast(eps, tl.float32))
    if MEAN is not None:
        tl.store(MEAN + row, mean)
    if RSTD is not None:
        tl.store(RSTD + row, rstd)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        total = _total(X, RESIDUAL, TOTAL, row, x_stride, residual_stride, column, inside, D)
        y = _scaled((total - mean[:, None]) * rstd[:, None], WEIGHT, BIAS, column, D)
        _store(Y, TOTAL, y, total, row, column, inside, D)


@triton.jit
def _total(X, RESIDUAL, TOTAL, row, x_stride, residual_stride, column, inside, D: tl.constexpr):
    """Load x + residual in fp32, rounded to the dtype of TOTAL, which is returned."""
    total = tl.load(X + row[:, None] * x_stride + column[None, :], inside, other=0.0)
    total = total.to(tl.float32)
    if RESIDUAL is not None:
        residual = RESIDUAL + row[:, None] * residual_stride + column[None, :]
        total += tl.load(residual, inside, other=0.0).to(tl.float32)
        total = total.to(TOTAL.dtype.element_ty).to(tl.float32)
    return total


@triton.jit
def _scaled(y, WEIGHT, BIAS, column, D: tl.constexpr):
    if WEIGHT is not None:
        y *= tl.load(WEIGHT + column, column < D, other=0.0).to(tl.float32)[None, :]
    if BIAS is not None:
        y += tl.load(BIAS + column, column < D, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def _store(Y, TOTAL, y, total, row, column, inside, D: tl.constexpr):
    place = row[:, None] * D + column[None, :]
    tl.store(Y + place, y.to(Y.dtype.element_ty), inside)
    if TOTAL is not None:
        tl.store(TOTAL + place, total.to(TOTAL.dtype.element_ty), inside)

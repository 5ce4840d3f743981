"""Gradient of a head's logits, a slice of the vocabulary at a time.

    dz = dlse · exp(z − lse) + dmean / V + dtarget · [v = target]

The logits are made again in fp32 and leave the registers as dz, in the dtype that the products
with it are made in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import LOG2_E
from fastgrow.kernels.linear_logits import logits_tile, tile_of

LOG2_E_ = tl.constexpr(LOG2_E)


@triton.jit(do_not_specialize=["rows"])
def gradient_kernel(
    hs,
    weights,
    bias,
    h_strides,
    weight_strides,
    widths,
    targets,
    lse,
    dlse,
    dtarget,
    dmean,
    out,
    sums,
    out_stride,
    rows,
    first,
    words,
    vocabulary,
    HEADS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tile_m, tile_n = tile_of(rows, words, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    word = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column = first + tl.minimum(word, words - 1)
    last = tl.minimum(row, rows - 1)
    z = logits_tile(
        hs, weights, bias, h_strides, weight_strides, widths, last, column,
        HEADS, WHOLE, PRECISION, INTERPRETED, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    is_row, is_word = row < rows, word < words
    # Rows that are not there repeat the last one, without a share in the sums over rows.
    of_lse = tl.load(dlse + row, mask=is_row, other=0.0)
    of_target = tl.load(dtarget + row, mask=is_row, other=0.0)
    target = tl.load(targets + row, mask=is_row, other=-1)
    pivot = tl.load(lse + last) * LOG2_E_
    pivot = tl.where(pivot == float("-inf"), 0.0, pivot)
    dz = tl.exp2(z * LOG2_E_ - pivot[:, None]) * of_lse[:, None]
    if dmean is not None:
        dz += (tl.load(dmean + row, mask=is_row, other=0.0) / vocabulary)[:, None]
    is_here = (target >= first) & (target < first + words)
    place = tl.where(is_here, target - first, -1).to(tl.int32)
    dz += tl.where(word[None, :] == place[:, None], of_target[:, None], 0.0)
    if sums is not None:
        over_rows = tl.sum(dz, 0)
        tl.store(sums + tile_m.to(tl.int64) * words + word, over_rows, mask=is_word)
    at = out + row.to(tl.int64)[:, None] * out_stride + word[None, :]
    tl.store(at, dz.to(out.dtype.element_ty), mask=is_row[:, None] & is_word[None, :])

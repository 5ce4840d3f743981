"""Kernels of a head's log-sum-exp and of its gradient, which share the computation of logits.

    z[m, v]   = Σ_k Σ_i h_k[m, i] · weight_k[v, i] + bias[v]
    lse[m]    = log Σ_v exp(z[m, v])
    dz[m, v]  = dlse[m] · exp(z[m, v] − lse[m]) + dmean[m] / V + dtarget[m] · [v = target[m]]

Each program computes one tile of rows and words, whose logits stay in its registers. In the forward
pass it writes the log-sum-exp of its words for each of its rows, so the vocabulary is split over
programs for any number of rows. A second kernel merges these N · V / 256 values. The backward pass
processes a slice of the vocabulary at a time: it computes the logits again in fp32 and writes dz,
in the dtype of the products with it.

Heads are passed as tuples of pointers, so each is read in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import LN_2, LOG2_E, operand
from fastgrow.kernels.matmul import tile_of

LOG2_E_ = tl.constexpr(LOG2_E)
LN_2_ = tl.constexpr(LN_2)


@triton.jit
def logits_tile(
    hs,
    weights,
    bias,
    h_strides,
    weight_strides,
    widths,
    rows,
    first,
    words,
    HEADS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute the logits [BLOCK_M, BLOCK_N] in fp32 of the program's tile.

    Beyond the last row and the last word, the last ones are read again; callers must mask these
    elements.

    Args:
        first: index of word 0 in the vocabulary.
        words: number of words.

    Returns:
        The logits, the rows and the words of the tile, and the tile's indices.
    """
    row, word, tile_m, tile_n = tile_of(tl.program_id(0), rows, words, BLOCK_M, BLOCK_N, GROUP_M)
    last, column = tl.minimum(row, rows - 1), first + tl.minimum(word, words - 1)
    z = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    feature = tl.arange(0, BLOCK_K)
    for k in tl.static_range(HEADS):
        h_at = hs[k] + last.to(tl.int64)[:, None] * h_strides[k] + feature[None, :]
        weight_at = weights[k] + column.to(tl.int64)[None, :] * weight_strides[k] + feature[:, None]
        for start in range(0, widths[k], BLOCK_K):
            if WHOLE:
                a, b = tl.load(h_at), tl.load(weight_at)
            else:
                inside = start + feature < widths[k]
                a = tl.load(h_at, mask=inside[None, :], other=0.0)
                b = tl.load(weight_at, mask=inside[:, None], other=0.0)
            z = tl.dot(
                operand(a, INTERPRETED), operand(b, INTERPRETED), z, input_precision=PRECISION
            )
            h_at += BLOCK_K
            weight_at += BLOCK_K
    if bias is not None:
        z += tl.load(bias + column).to(tl.float32)[None, :]
    return z, row, word, tile_m, tile_n


@triton.jit(do_not_specialize=["rows"])
def lse_kernel(
    hs,
    weights,
    bias,
    h_strides,
    weight_strides,
    widths,
    targets,
    parts,
    target_logit,
    rows,
    vocabulary,
    WITH_MEAN: tl.constexpr,
    HEADS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    z, row, column, _, tile_n = logits_tile(
        hs, weights, bias, h_strides, weight_strides, widths, rows, 0, vocabulary,
        HEADS, WHOLE, PRECISION, INTERPRETED, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
    )  # fmt: skip
    is_row = row < rows
    target = tl.load(targets + row, mask=is_row, other=-1)
    first = tile_n * BLOCK_N
    is_here = (target >= first) & (target < min(first + BLOCK_N, vocabulary))
    # In a large vocabulary most tiles contain few of their rows' targets.
    if tl.max(is_here.to(tl.int32), 0) > 0:
        place = tl.where(is_here, target - first, -1).to(tl.int32)
        chosen = tl.where(tl.arange(0, BLOCK_N)[None, :] == place[:, None], z, 0.0)
        tl.store(target_logit + row, tl.sum(chosen, 1), mask=is_here)
    part = parts + tile_n.to(tl.int64) * rows + row
    if WITH_MEAN:
        total = tl.sum(tl.where((column < vocabulary)[None, :], z, 0.0), 1)
        tl.store(part + tl.cast(tl.cdiv(vocabulary, BLOCK_N), tl.int64) * rows, total, mask=is_row)
    if first + BLOCK_N > vocabulary:
        z = tl.where((column < vocabulary)[None, :], z, float("-inf"))
    # In units of log2. The pivot has to be finite, so that infinite logits give infinite sums.
    pivot = tl.max(z, 1) * LOG2_E_
    pivot = tl.where(tl.abs(pivot) == float("inf"), 0.0, pivot)
    sums = tl.sum(tl.exp2(z * LOG2_E_ - pivot[:, None]), 1)
    tl.store(part, (pivot + tl.log2(sums)) * LN_2_, mask=is_row)


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    parts,
    lse,
    mean,
    rows,
    vocabulary,
    count,
    WITH_MEAN: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, count, TILES):
        tile = start + tl.arange(0, TILES)
        inside = (tile < count)[:, None] & is_row[None, :]
        at = tile.to(tl.int64)[:, None] * rows + row[None, :]
        part = tl.load(parts + at, mask=inside, other=float("-inf")) * LOG2_E_
        above = tl.maximum(highest, tl.max(part, 0))
        pivot = tl.where(tl.abs(above) == float("inf"), 0.0, above)
        before = tl.where(highest == float("-inf"), 0.0, sums * tl.exp2(highest - pivot))
        sums = before + tl.sum(tl.exp2(part - pivot[None, :]), 0)
        highest = above
        if WITH_MEAN:
            sum_at = parts + tl.cast(count, tl.int64) * rows + at
            total += tl.sum(tl.load(sum_at, mask=inside, other=0.0), 0)
    pivot = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
    tl.store(lse + row, (pivot + tl.log2(sums)) * LN_2_, mask=is_row)
    if WITH_MEAN:
        tl.store(mean + row, total / vocabulary, mask=is_row)


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
    z, row, word, tile_m, _ = logits_tile(
        hs, weights, bias, h_strides, weight_strides, widths, rows, first, words,
        HEADS, WHOLE, PRECISION, INTERPRETED, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
    )  # fmt: skip
    is_row, is_word = row < rows, word < words
    # Rows beyond the last repeat it, with factors of 0 in the sums over rows.
    of_lse = tl.load(dlse + row, mask=is_row, other=0.0)
    of_target = tl.load(dtarget + row, mask=is_row, other=0.0)
    target = tl.load(targets + row, mask=is_row, other=-1)
    pivot = tl.load(lse + tl.minimum(row, rows - 1)) * LOG2_E_
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

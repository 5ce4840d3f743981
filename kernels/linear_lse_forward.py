"""Log-sum-exp and target logit of a head, tile by tile; the logits never leave the registers.

Each program makes one tile of rows and words and leaves the log-sum-exp of its words for each of
its rows, so the words are split over as many programs as there are tiles, whether there is one row
or a hundred thousand. A second kernel merges what the tiles left: N · V / 256 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import LN_2, LOG2_E
from fastgrow.kernels.linear_logits import logits_tile, tile_of

LOG2_E_ = tl.constexpr(LOG2_E)
LN_2_ = tl.constexpr(LN_2)


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
    tile_m, tile_n = tile_of(rows, vocabulary, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    z = logits_tile(
        hs, weights, bias, h_strides, weight_strides, widths,
        tl.minimum(row, rows - 1), tl.minimum(column, vocabulary - 1),
        HEADS, WHOLE, PRECISION, INTERPRETED, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    is_row = row < rows
    target = tl.load(targets + row, mask=is_row, other=-1)
    first = tile_n * BLOCK_N
    is_here = (target >= first) & (target < min(first + BLOCK_N, vocabulary))
    # Most tiles of a large vocabulary hold few of their rows' targets.
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
    # In powers of two. Infinite logits give infinite sums only with a finite pivot.
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

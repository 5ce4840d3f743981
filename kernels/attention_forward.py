"""Attention, forward: one program per tile of queries, online softmax over blocks of keys.

Queries are rotated when they are loaded; keys are passed rotated. The scores are in units of log2
and include the softmax scale; both factors are folded into the queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import operand, operand_like, store_rows
from fastgrow.kernels.key_ranges import (
    interval_of_tile,
    keys_of_row,
    runs_of_blocks,
    tile_of_program,
)
from fastgrow.kernels.rotation import load_queries

# Bound on |scores| without a pivot. Weights are then between 2^-32 and 2^32, so their sums are far
# from fp32's limits, and so are their products with values: for 8,192 keys up to |v| = 9e24.
_BOUND = tl.constexpr(32.0)
# The initial pivot (running maximum) is finite: a row that sees no key in a block subtracts it from
# -inf and gets exp2 = 0. It is the lowest number, so no finite score is below it.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def attend(
    acc, total, pivot, q, K, V, k_t, v_t, begin, stop, first, end, n_keys,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, FROM_FIRST: tl.constexpr, BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Accumulate the key blocks from `begin` to `stop` into the running sums.

    Keys from `first` (0 with FROM_FIRST) to `end` are seen. BOUNDED: the scores are known to be
    small, so the pivot stays at 0 and nothing is rescaled. `total` is then [BLOCK_M, 16] and every
    column gets the sum of the weights, by a product with ones: the matrix units do what otherwise
    takes an addition for each score and shuffles between threads. Otherwise `total` is [BLOCK_M].
    """
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    d_ok = d < D
    for j0 in tl.range(begin, stop, BLOCK_N):
        j = j0 + n
        at = tl.cast(j0, tl.int64)
        k_from = K + at * k_t + n[None, :] * k_t + d[:, None]
        v_from = V + at * v_t + n[:, None] * v_t + d[None, :]
        if MASKED:
            k = tl.load(k_from, mask=d_ok[:, None] & (j < n_keys)[None, :], other=0.0)
            v = tl.load(v_from, mask=(j < n_keys)[:, None] & d_ok[None, :], other=0.0)
        elif D == BLOCK_D:
            k = tl.load(k_from)
            v = tl.load(v_from)
        else:
            k = tl.load(k_from, mask=d_ok[:, None], other=0.0)
            v = tl.load(v_from, mask=d_ok[None, :], other=0.0)
        k, v = operand(k, INTERPRETED), operand(v, INTERPRETED)
        scores = tl.dot(q, k, input_precision=PRECISION)
        if MASKED:
            seen = j[None, :] < end[:, None]
            if not FROM_FIRST:
                seen = seen & (j[None, :] >= first[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        if BOUNDED:
            weights = operand_like(tl.exp2(scores), v, INTERPRETED)
            ones = tl.full([BLOCK_N, 16], 1.0, weights.dtype)
            total = tl.dot(weights, ones, total, input_precision=PRECISION)
        else:
            new_pivot = tl.maximum(pivot, tl.max(scores, 1))
            weights = tl.exp2(scores - new_pivot[:, None])
            shrink = tl.exp2(pivot - new_pivot)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            pivot = new_pivot
            weights = operand_like(weights, v, INTERPRETED)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    return acc, total, pivot


@triton.jit
def attend_all(
    pivot, q, K, V, k_t, v_t, first, end, n_keys,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FROM_FIRST: tl.constexpr, BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Process the runs of blocks: partly seen (none if all see key 0), seen by all, partly seen."""
    begin, all_from, all_to, stop = runs_of_blocks(first, end, n_keys, BLOCK_N, FROM_FIRST)
    total = tl.zeros([BLOCK_M, 16] if BOUNDED else [BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if not FROM_FIRST:
        acc, total, pivot = attend(
            acc, total, pivot, q, K, V, k_t, v_t, begin, all_from, first, end, n_keys,
            D, BLOCK_D, BLOCK_N, True, FROM_FIRST, BOUNDED, PRECISION, INTERPRETED,
        )  # fmt: skip
    acc, total, pivot = attend(
        acc, total, pivot, q, K, V, k_t, v_t, all_from, all_to, first, end, n_keys,
        D, BLOCK_D, BLOCK_N, False, FROM_FIRST, BOUNDED, PRECISION, INTERPRETED,
    )  # fmt: skip
    acc, total, pivot = attend(
        acc, total, pivot, q, K, V, k_t, v_t, all_to, stop, first, end, n_keys,
        D, BLOCK_D, BLOCK_N, True, FROM_FIRST, BOUNDED, PRECISION, INTERPRETED,
    )  # fmt: skip
    if BOUNDED:
        # The columns are equal.
        total = tl.max(total, 1)
    return acc, total, pivot


@triton.jit(do_not_specialize=["positions_b", "n_positions", "QUERIES", "KEYS", "n_norms"])
def forward_kernel(
    Q, K, V, OUT, LSE, NORMS,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr,
    LENGTHS, STARTS, FIRSTS, ENDS,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    HEADS, GROUP, QUERIES, KEYS, n_norms, factor, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write out and, unless LSE is None, log2 of the softmax's sum (+inf if no key is seen).

    `factor` is scale · log2(e). COS None: queries are not rotated. NORMS [B · H_kv, n_norms]: the
    largest norms of keys, which bound the scores by the Cauchy-Schwarz inequality.
    """
    # The last queries see the most keys, so they start first.
    tile, head, b, h = tile_of_program(QUERIES, HEADS, BLOCK_M, True)
    kv = h // GROUP
    K += b * k_b + kv * k_h
    V += b * v_b + kv * v_h

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < QUERIES
    n_keys = keys_of_row(b, LENGTHS, KEYS)
    p = n_keys - QUERIES + rows
    from_first: tl.constexpr = (window is None) and (FIRSTS is None) and (STARTS is None)
    first, end = interval_of_tile(
        tile, rows, p, b, n_keys, STARTS, FIRSTS, ENDS, QUERIES, KEYS, window, CAUSAL, from_first
    )

    offsets = b * q_b + h * q_h + rows.to(tl.int64) * q_t
    q = load_queries(
        Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
        factor, D, R, BLOCK_D,
    )  # fmt: skip
    if not INTERPRETED:
        q = q.to(Q.dtype.element_ty)

    pivot = tl.full([BLOCK_M], LOWEST, tl.float32)
    bounded = False
    if NORMS is not None:
        of_keys = 0.0
        plane = (b * (HEADS // GROUP) + kv) * n_norms
        for at in range(0, n_norms, 64):
            block = at + tl.arange(0, 64)
            norms = tl.load(NORMS + plane + block, mask=block < n_norms, other=0.0)
            of_keys = tl.maximum(of_keys, tl.max(norms, 0))
        wide = q.to(tl.float32)
        bounded = tl.sqrt(tl.max(tl.sum(wide * wide, 1), 0)) * of_keys <= _BOUND
    if bounded:
        acc, total, pivot = attend_all(
            pivot * 0.0, q, K, V, k_t, v_t, first, end, n_keys,
            D, BLOCK_D, BLOCK_M, BLOCK_N, from_first, True, PRECISION, INTERPRETED,
        )  # fmt: skip
    else:
        acc, total, pivot = attend_all(
            pivot, q, K, V, k_t, v_t, first, end, n_keys,
            D, BLOCK_D, BLOCK_M, BLOCK_N, from_first, False, PRECISION, INTERPRETED,
        )  # fmt: skip

    blind = end <= first
    total = tl.where(blind, 1.0, total)
    out = acc / total[:, None]
    store_rows(OUT + b * o_b + h * o_h, rows.to(tl.int64) * o_t, out, row_ok, D, BLOCK_D)
    if LSE is not None:
        lse = tl.where(blind, float("inf"), pivot + tl.log2(total))
        tl.store(LSE + head.to(tl.int64) * QUERIES + rows, lse, mask=row_ok)

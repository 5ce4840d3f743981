"""Attention of few queries over many keys, as in decoding with a cache, split over the keys.

One program processes a run of keys for all queries that share them (the heads of a group times the
last few tokens), so the cache is read once; a second kernel joins the runs. A batch may contain
rows of different lengths: a program beyond its row's last key reads nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.attention_forward import LOWEST, attend
from fastgrow.kernels.common import store_rows
from fastgrow.kernels.key_ranges import interval, keys_of_row
from fastgrow.kernels.rotation import load_queries


@triton.jit(do_not_specialize=["positions_b", "n_positions", "KEYS"])
def decode_kernel(
    Q, K, V, PARTS,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr,
    LENGTHS, STARTS, FIRSTS, ENDS,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    KV_HEADS, GROUP, QUERIES, KEYS, run, factor, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write the results [B·H_kv, runs, rows, D], sums and pivots [B·H_kv, runs, rows] of a run.

    PARTS contains the three, one after the other. Row r is query r % QUERIES of the group's head
    r // QUERIES.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    b, kv = (head // KV_HEADS).to(tl.int64), (head % KV_HEADS).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    n_rows = GROUP * QUERIES
    row_ok = rows < n_rows
    i = rows % QUERIES
    n_keys = keys_of_row(b, LENGTHS, KEYS)
    p = n_keys - QUERIES + i
    first, end = interval(p, b, n_keys, STARTS, FIRSTS, ENDS, KEYS, window, CAUSAL)

    offsets = b * q_b + (kv * GROUP + rows // QUERIES) * q_h + i.to(tl.int64) * q_t
    q = load_queries(
        Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
        factor, D, R, BLOCK_D,
    )  # fmt: skip
    if not INTERPRETED:
        q = q.to(Q.dtype.element_ty)

    begin = part * run
    stop = tl.minimum(tl.minimum(begin + run, tl.max(end, 0)), n_keys)
    from_first: tl.constexpr = (window is None) and (FIRSTS is None) and (STARTS is None)
    if not from_first:
        # With a window the first runs may have no key.
        begin = tl.maximum(begin, tl.minimum(tl.min(first, 0) // BLOCK_N * BLOCK_N, begin + run))
    pivot = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc, total, pivot = attend(
        acc, total, pivot, q, K + b * k_b + kv * k_h, V + b * v_b + kv * v_h, k_t, v_t,
        begin, stop, first, end, tl.minimum(stop, n_keys),
        D, BLOCK_D, BLOCK_N, True, from_first, False, PRECISION, INTERPRETED,
    )  # fmt: skip
    at = (head.to(tl.int64) * tl.num_programs(1) + part) * n_rows + rows
    n_parts = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * n_rows
    SUMS = PARTS + n_parts * D
    # A query that sees no key gets 0 / 1; one whose scores are all -inf gets 0 / 0.
    tl.store(SUMS + at, tl.where(end <= first, 1.0, total), mask=row_ok)
    tl.store(SUMS + n_parts + at, pivot, mask=row_ok)
    store_rows(PARTS, at * D, acc, row_ok, D, BLOCK_D)


@triton.jit(do_not_specialize=["n_runs"])
def join_kernel(
    PARTS, OUT, o_b, o_h, o_t, KV_HEADS, GROUP, QUERIES, n_runs,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Write OUT of one row, joined from the PARTS of its runs."""
    head, row = tl.program_id(0), tl.program_id(1)
    b, kv = (head // KV_HEADS).to(tl.int64), (head % KV_HEADS).to(tl.int64)
    runs = tl.arange(0, RUNS)
    d = tl.arange(0, BLOCK_D)
    at = (head.to(tl.int64) * n_runs + runs) * (GROUP * QUERIES) + row
    n_parts = tl.num_programs(0).to(tl.int64) * n_runs * tl.num_programs(1)
    SUMS = PARTS + n_parts * D
    known = runs < n_runs
    total = tl.load(SUMS + at, mask=known, other=0.0)
    pivots = tl.load(SUMS + n_parts + at, mask=known, other=LOWEST)
    mask = known[:, None] & (d < D)[None, :]
    parts = tl.load(PARTS + at[:, None] * D + d[None, :], mask=mask, other=0.0)
    share = tl.exp2(pivots - tl.max(pivots, 0))
    total = tl.sum(total * share, 0)
    out = tl.sum(parts * share[:, None], 0) / total
    to = OUT + b * o_b + (kv * GROUP + row // QUERIES) * o_h + (row % QUERIES).to(tl.int64) * o_t
    tl.store(to + d, out.to(OUT.dtype.element_ty), mask=d < D)

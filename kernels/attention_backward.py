"""Attention, backward, deterministic: one kernel for dq, one for dk and dv, no atomics.

With s = q̃·k̃ᵀ in units of log2 (scale and log2(e) folded into q̃), w = exp2(s − lse) and
δ_i = Σ_d out_id · dout_id:

    dv_j = Σ_i w_ij dout_i
    ds   = w ∘ (dout · vᵀ − δ)
    dq̃_i = scale · Σ_j ds_ij k̃_j              dk̃_j = ln 2 · Σ_i ds_ij q̃_i

The forward pass saves no rotated tensors: queries and keys are rotated again into temporary
workspaces, and the gradients are rotated back in registers before they are stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import LN_2, load_rows, operand, operand_like, store_rows
from fastgrow.kernels.key_ranges import (
    interval,
    interval_of_tile,
    keys_of_row,
    runs_of_blocks,
    tile_of_program,
)
from fastgrow.kernels.rotation import load_queries, load_rotation_of, rotate_back

_LN_2 = tl.constexpr(LN_2)


@triton.jit(do_not_specialize=["positions_b", "n_positions", "QUERIES", "KEYS"])
def prepare_kernel(
    Q, OUT, D_OUT, SCALED, DELTA,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr, LENGTHS,
    q_b, q_h, q_t, o_b, o_h, o_t, do_b, do_h, do_t,
    HEADS, QUERIES, KEYS, factor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write SCALED [B·H, Tq, D] = factor · rotated queries, DELTA [B·H, Tq] = Σ out · dout."""
    n_blocks = tl.cdiv(QUERIES, BLOCK_M)
    head, block = tl.program_id(0) // n_blocks, tl.program_id(0) % n_blocks
    b, h = (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < QUERIES
    wide = rows.to(tl.int64)

    out = load_rows(OUT + b * o_b + h * o_h, wide * o_t, row_ok, D, BLOCK_D)
    d_out = load_rows(D_OUT + b * do_b + h * do_h, wide * do_t, row_ok, D, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    plane = head.to(tl.int64) * QUERIES
    tl.store(DELTA + plane + rows, delta, mask=row_ok)

    p = keys_of_row(b, LENGTHS, KEYS) - QUERIES + rows
    offsets = b * q_b + h * q_h + wide * q_t
    q = load_queries(
        Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
        factor, D, R, BLOCK_D,
    )  # fmt: skip
    store_rows(SCALED, (plane + wide) * D, q, row_ok, D, BLOCK_D)


@triton.jit
def _gather_d_query(
    dq, q, d_out, lse, delta, K, V, k_t, v_t, begin, stop, first, end, n_keys,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, FROM_FIRST: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add the contribution of the key blocks from `begin` to `stop` to dq."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    for j0 in tl.range(begin, stop, BLOCK_N):
        j = j0 + n
        at = tl.cast(j0, tl.int64)
        mask = (d < D)[None, :]
        if MASKED:
            mask = mask & (j < n_keys)[:, None]
        k = tl.load(K + at * k_t + n[:, None] * k_t + d[None, :], mask=mask, other=0.0)
        v = tl.load(V + at * v_t + n[:, None] * v_t + d[None, :], mask=mask, other=0.0)
        k, v = operand(k, INTERPRETED), operand(v, INTERPRETED)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = tl.exp2(scores - lse[:, None])
        d_weights = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[:, None])
        if MASKED:
            seen = j[None, :] < end[:, None]
            if not FROM_FIRST:
                seen = seen & (j[None, :] >= first[:, None])
            d_scores = tl.where(seen, d_scores, 0.0)
        dq = tl.dot(operand_like(d_scores, k, INTERPRETED), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=["positions_b", "n_positions", "QUERIES", "KEYS"])
def d_query_kernel(
    SCALED, K, V, D_OUT, LSE, DELTA, DQ,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr,
    LENGTHS, STARTS, FIRSTS, ENDS,
    k_b, k_h, k_t, v_b, v_h, v_t, do_b, do_h, do_t, dq_b, dq_h, dq_t,
    HEADS, GROUP, QUERIES, KEYS, scale, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write DQ: one program per tile of queries, over the blocks of keys that the tile sees."""
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

    wide = rows.to(tl.int64)
    plane = head.to(tl.int64) * QUERIES
    q = load_rows(SCALED, (plane + wide) * D, row_ok, D, BLOCK_D)
    d_out = load_rows(D_OUT + b * do_b + h * do_h, wide * do_t, row_ok, D, BLOCK_D)
    q, d_out = operand(q, INTERPRETED), operand(d_out, INTERPRETED)
    lse = tl.load(LSE + plane + rows, mask=row_ok, other=float("inf"))
    delta = tl.load(DELTA + plane + rows, mask=row_ok, other=0.0)

    begin, all_from, all_to, stop = runs_of_blocks(first, end, n_keys, BLOCK_N, from_first)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if not from_first:
        dq = _gather_d_query(
            dq, q, d_out, lse, delta, K, V, k_t, v_t, begin, all_from, first, end, n_keys,
            D, BLOCK_D, BLOCK_N, True, from_first, PRECISION, INTERPRETED,
        )  # fmt: skip
    dq = _gather_d_query(
        dq, q, d_out, lse, delta, K, V, k_t, v_t, all_from, all_to, first, end, n_keys,
        D, BLOCK_D, BLOCK_N, False, from_first, PRECISION, INTERPRETED,
    )  # fmt: skip
    dq = _gather_d_query(
        dq, q, d_out, lse, delta, K, V, k_t, v_t, all_to, stop, first, end, n_keys,
        D, BLOCK_D, BLOCK_N, True, from_first, PRECISION, INTERPRETED,
    )  # fmt: skip

    dq *= tl.cast(scale, tl.float32)
    if COS is not None:
        cos, sin = load_rotation_of(
            p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS, R, BLOCK_D
        )
        dq = rotate_back(dq, cos, sin, R, BLOCK_D)
    store_rows(DQ + b * dq_b + h * dq_h, wide * dq_t, dq, row_ok, D, BLOCK_D)


@triton.jit
def _gather_d_key(
    dk, dv, k, v, Q, D_OUT, LSE, DELTA, do_t, begin, stop, j, b, n_keys,
    STARTS, FIRSTS, ENDS, QUERIES, KEYS, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, FROM_FIRST: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a head's query blocks from `begin` to `stop` to dk and dv."""
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    for i0 in tl.range(begin, stop, BLOCK_M):
        rows = i0 + m
        at = tl.cast(i0, tl.int64)
        mask = (d < D)[None, :]
        if MASKED:
            mask = mask & (rows < QUERIES)[:, None]
            lse = tl.load(LSE + rows, mask=rows < QUERIES, other=float("inf"))
            delta = tl.load(DELTA + rows, mask=rows < QUERIES, other=0.0)
        else:
            lse = tl.load(LSE + rows)
            delta = tl.load(DELTA + rows)
        q = tl.load(Q + at * D + m[:, None] * D + d[None, :], mask=mask, other=0.0)
        d_out = tl.load(D_OUT + at * do_t + m[:, None] * do_t + d[None, :], mask=mask, other=0.0)
        q, d_out = operand(q, INTERPRETED), operand(d_out, INTERPRETED)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weights = tl.exp2(scores - lse[None, :])
        if MASKED:
            p = n_keys - QUERIES + rows
            first, end = interval(p, b, n_keys, STARTS, FIRSTS, ENDS, KEYS, window, CAUSAL)
            # An infinite key times the zeros of a query beyond the last would be NaN.
            seen = (j[:, None] < end[None, :]) & (rows < QUERIES)[None, :]
            if not FROM_FIRST:
                seen = seen & (j[:, None] >= first[None, :])
            weights = tl.where(seen, weights, 0.0)
        dv = tl.dot(operand_like(weights, d_out, INTERPRETED), d_out, dv, input_precision=PRECISION)
        d_weights = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[None, :])
        if MASKED:
            # Zero weights are not enough: NaN of a query would reach keys that it does not see.
            d_scores = tl.where(seen, d_scores, 0.0)
        dk = tl.dot(operand_like(d_scores, q, INTERPRETED), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["positions_b", "n_positions", "QUERIES", "KEYS"])
def d_key_kernel(
    SCALED, K, V, D_OUT, LSE, DELTA, DK, DV,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, R: tl.constexpr,
    LENGTHS, STARTS, FIRSTS, ENDS,
    k_b, k_h, k_t, v_b, v_h, v_t, do_b, do_h, do_t, dk_b, dk_h, dk_t,
    KV_HEADS, GROUP, QUERIES, KEYS, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write DK and DV, which have the same strides.

    One program per block of keys, over the heads that share it and the queries that see it.
    """
    # With a causal mask the first keys, which most queries see, already start first.
    block, _, b, kv = tile_of_program(KEYS, KV_HEADS, BLOCK_N, False)
    n_keys = keys_of_row(b, LENGTHS, KEYS)
    shift = n_keys - QUERIES

    j0 = block * BLOCK_N
    j = j0 + tl.arange(0, BLOCK_N)
    wide = j.to(tl.int64)
    k = load_rows(K + b * k_b + kv * k_h, wide * k_t, j < n_keys, D, BLOCK_D)
    v = load_rows(V + b * v_b + kv * v_h, wide * v_t, j < n_keys, D, BLOCK_D)
    k, v = operand(k, INTERPRETED), operand(v, INTERPRETED)

    # The range of queries p that see some key of the block, as rows i = p − shift.
    j_last = tl.minimum(j0 + BLOCK_N, n_keys) - 1
    p_from, p_to = 0, shift + QUERIES
    if not CAUSAL:
        p_from += tl.minimum(shift, 0)
    if CAUSAL:
        p_from += j0
    if window is not None:
        p_to = tl.minimum(p_to, j_last + window)
    if FIRSTS is not None:
        p_from = tl.maximum(p_from, tl.load(FIRSTS + tl.minimum(j0, KEYS - 1)))
        p_to = tl.minimum(p_to, tl.load(ENDS + tl.minimum(tl.maximum(j_last, 0), KEYS - 1)))
    begin = tl.maximum(p_from - shift, 0) // BLOCK_M * BLOCK_M
    stop = tl.minimum(p_to - shift, QUERIES)
    if j_last < j0:
        stop = begin

    # Later queries are known to see the whole block only if no rule but causality applies.
    from_first: tl.constexpr = (window is None) and (FIRSTS is None) and (STARTS is None)
    whole = stop
    if from_first:
        full_block = j0 + BLOCK_N <= n_keys
        see_all = begin
        if CAUSAL:
            see_all = tl.cdiv(tl.maximum(j_last - shift, 0), BLOCK_M) * BLOCK_M
        whole = tl.where(full_block, tl.minimum(tl.maximum(see_all, begin), stop), stop)
    whole_to = tl.maximum(stop // BLOCK_M * BLOCK_M, whole)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for g in range(GROUP):
        h = kv * GROUP + g
        plane = (b * KV_HEADS * GROUP + h) * QUERIES
        q_plane, d_out = SCALED + plane * D, D_OUT + b * do_b + h * do_h
        lse, delta = LSE + plane, DELTA + plane
        dk, dv = _gather_d_key(
            dk, dv, k, v, q_plane, d_out, lse, delta, do_t, begin, whole, j, b, n_keys,
            STARTS, FIRSTS, ENDS, QUERIES, KEYS, window,
            D, BLOCK_D, BLOCK_M, CAUSAL, True, from_first, PRECISION, INTERPRETED,
        )  # fmt: skip
        if from_first:
            dk, dv = _gather_d_key(
                dk, dv, k, v, q_plane, d_out, lse, delta, do_t, whole, whole_to, j, b, n_keys,
                STARTS, FIRSTS, ENDS, QUERIES, KEYS, window,
                D, BLOCK_D, BLOCK_M, CAUSAL, False, from_first, PRECISION, INTERPRETED,
            )  # fmt: skip
            dk, dv = _gather_d_key(
                dk, dv, k, v, q_plane, d_out, lse, delta, do_t, whole_to, stop, j, b, n_keys,
                STARTS, FIRSTS, ENDS, QUERIES, KEYS, window,
                D, BLOCK_D, BLOCK_M, CAUSAL, True, from_first, PRECISION, INTERPRETED,
            )  # fmt: skip

    dk *= _LN_2
    if COS is not None:
        cos, sin = load_rotation_of(
            j, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS, R, BLOCK_D
        )
        dk = rotate_back(dk, cos, sin, R, BLOCK_D)
    at = b * dk_b + kv * dk_h + wide * dk_t
    store_rows(DK, at, dk, j < KEYS, D, BLOCK_D)
    store_rows(DV, at, dv, j < KEYS, D, BLOCK_D)

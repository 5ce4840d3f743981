"""Attention of a few queries over many keys, as in decoding with a cache: split over the keys.

One program takes a run of keys for all the queries that share them (a group's heads times the
last few tokens), so the cache is read once; a second kernel joins the runs. Rows of different
lengths are a batch: a program beyond its row's last key has nothing to read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrow.kernels.attention_forward import LOWEST, attend
from fastgrow.kernels.common import INTERPRETED, cdiv
from fastgrow.kernels.key_ranges import interval, keys_of_row
from fastgrow.kernels.multiprocessors import multiprocessors
from fastgrow.kernels.rotation import block_of, load_queries

MAX_QUERIES = 8  # tokens at once, above which `forward` is as good
MAX_ROWS = 64  # of queries times heads that share a key head
MAX_RUNS = 64
# Runs that are joined in one go: another number would compile another kernel while a text grows.
FEW_RUNS = 16
WITHOUT_GPU = 4  # multiprocessors where there is none


@dataclass(frozen=True)
class Split:
    """Keys a program reads at a time, how it is compiled, and programs a processor is to have."""

    block_n: int
    programs: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["positions_b", "n_positions", "KEYS"])
def decode_kernel(
    Q, K, V, PARTS,
    COS, SIN, POSITIONS, table_stride, positions_b, n_positions, LENGTHS, STARTS, FIRSTS, ENDS,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    KV_HEADS, GROUP, QUERIES, KEYS, run, factor, window,
    D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Results [B·H_kv, runs, rows, D] of one run of keys, sums and pivots [B·H_kv, runs, rows].

    PARTS has room for the three, one after the other. Row r stands for head r // QUERIES of the
    group and query r % QUERIES.
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

    d = tl.arange(0, BLOCK_D)
    offsets = b * q_b + (kv * GROUP + rows // QUERIES) * q_h + i.to(tl.int64) * q_t
    q = load_queries(
        Q, offsets, row_ok, p, b, COS, SIN, POSITIONS, table_stride, positions_b, n_positions, KEYS,
        D, R, BLOCK_D,
    )  # fmt: skip
    q = q * tl.cast(factor, tl.float32)
    if not INTERPRETED:
        q = q.to(Q.dtype.element_ty)

    begin = part * run
    stop = tl.minimum(tl.minimum(begin + run, tl.max(end, 0)), n_keys)
    from_first: tl.constexpr = (window is None) and (FIRSTS is None) and (STARTS is None)
    if not from_first:
        # A window may leave the first runs without a key.
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
    # Nothing over one for a query that sees no key; 0 / 0 where every score seen is -inf.
    tl.store(SUMS + at, tl.where(end <= first, 1.0, total), mask=row_ok)
    tl.store(SUMS + n_parts + at, pivot, mask=row_ok)
    mask = row_ok[:, None] & (d < D)[None, :]
    tl.store(PARTS + at[:, None] * D + d[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["n_runs"])
def join_kernel(
    PARTS, OUT, o_b, o_h, o_t, KV_HEADS, GROUP, QUERIES, n_runs,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """OUT for one row from its runs' PARTS."""
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


def can_decode(q: Tensor, k: Tensor) -> bool:
    """Few queries over more keys than one program should read."""
    queries, keys = q.shape[2], k.shape[2]
    rows = queries * (q.shape[1] // k.shape[1])
    return (
        queries <= MAX_QUERIES and rows <= MAX_ROWS and keys >= 4 * block_n_of(q.shape[3], q.dtype)
    )


def block_n_of(dim: int, dtype: torch.dtype) -> int:
    """Keys a program reads at a time: 16 KiB of them."""
    if INTERPRETED:
        return 16
    return max(16, min(128, 16384 // dtype.itemsize // block_of(dim)))


def split_of(dim: int, dtype: torch.dtype) -> Split:
    """The configuration without a measured one."""
    block_n = block_n_of(dim, dtype)
    if dtype == torch.float32:
        # Without matrix units the operands of a product lie in registers, which more warps share.
        return Split(block_n, 2, 8 if block_n > 16 else 4, 2)
    return Split(block_n, 2, 4, 3)


def runs_of_keys(
    batch_heads: int, keys: int, split: Split, device: torch.device
) -> tuple[int, int]:
    """How many runs the keys are split into, and the keys of a run (a multiple of block_n).

    None has less than two blocks.
    """
    programs = split.programs * multiprocessors(device, WITHOUT_GPU)
    wanted = max(1, programs // batch_heads)
    blocks = cdiv(keys, split.block_n)
    blocks_of_run = max(2, cdiv(blocks, min(wanted, MAX_RUNS)))
    return cdiv(blocks, blocks_of_run), blocks_of_run * split.block_n

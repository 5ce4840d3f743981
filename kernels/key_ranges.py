"""The keys that a query sees, as one interval of key indices for each query.

With causality, a sliding window, left padding, ragged lengths and packed documents, the keys that a
query sees are an interval first ≤ j < end. So a tile of queries has three runs of key blocks: those
that only some of its queries see, those that all of them see (no masking), and again those that
only some see.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile_of_program(ROWS, HEADS, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Return the program's tile, its head among all batch rows, its batch row and its head there.

    Programs start in the order of their number. The tiles that take longest start first, and
    neighbouring programs work on the same tile of different heads, so the last wave is balanced.
    """
    n_tiles = tl.cdiv(ROWS, BLOCK)
    n_heads = tl.num_programs(0) // n_tiles
    tile, head = tl.program_id(0) // n_heads, tl.program_id(0) % n_heads
    if LAST_FIRST:
        tile = n_tiles - 1 - tile
    return tile, head, (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)


@triton.jit
def keys_of_row(b, LENGTHS, KEYS):
    """Return the number of keys of batch row b; LENGTHS, unchecked by the host, is clamped."""
    n_keys = KEYS
    if LENGTHS is not None:
        n_keys = tl.minimum(tl.maximum(tl.load(LENGTHS + b).to(tl.int32), 0), KEYS)
    return n_keys


@triton.jit
def interval(p, b, n_keys, STARTS, FIRSTS, ENDS, KEYS, window, CAUSAL: tl.constexpr):
    """Return first and end, int32, of the queries at key indices p.

    FIRSTS and ENDS [KEYS] are the beginning and end of the document of each index.
    """
    first = tl.zeros_like(p)
    end = tl.zeros_like(p) + n_keys
    if CAUSAL:
        end = tl.minimum(end, p + 1)
    if window is not None:
        first = tl.maximum(first, p - window + 1)
    if FIRSTS is not None:
        known = (p >= 0) & (p < KEYS)
        first = tl.maximum(first, tl.load(FIRSTS + p, mask=known, other=0))
        end = tl.minimum(end, tl.load(ENDS + p, mask=known, other=0))
    if STARTS is not None:
        first = tl.maximum(first, tl.load(STARTS + b).to(tl.int32))
    return first, end


@triton.jit
def interval_of_tile(
    tile, rows, p, b, n_keys, STARTS, FIRSTS, ENDS, QUERIES, KEYS, window,
    CAUSAL: tl.constexpr, FROM_FIRST: tl.constexpr,
):  # fmt: skip
    """Return `interval` of the rows of a tile; rows beyond the last query get the last query's.

    So these rows neither widen nor narrow the runs of blocks. FROM_FIRST: all queries see key 0.
    """
    first, end = interval(p, b, n_keys, STARTS, FIRSTS, ENDS, KEYS, window, CAUSAL)
    row_ok = rows < QUERIES
    last = tl.minimum(QUERIES - 1, tile * rows.shape[0] + rows.shape[0] - 1)
    end = tl.where(row_ok, end, tl.max(tl.where(rows == last, end, -1), 0))
    if not FROM_FIRST:
        first = tl.where(row_ok, first, tl.max(tl.where(rows == last, first, 0), 0))
    return first, end


@triton.jit
def runs_of_blocks(first, end, n_keys, BLOCK_N: tl.constexpr, FROM_FIRST: tl.constexpr):
    """Return the limits of the three runs: [begin, all_from), [all_from, all_to), [all_to, stop).

    The first run is empty if all queries see key 0.
    """
    begin, all_from = 0, 0
    # The end of queries before the first key of a short row is negative.
    stop = tl.maximum(tl.minimum(tl.max(end, 0), n_keys), 0)
    if not FROM_FIRST:
        begin = tl.maximum(tl.min(first, 0), 0) // BLOCK_N * BLOCK_N
        all_from = tl.minimum(tl.cdiv(tl.max(first, 0), BLOCK_N) * BLOCK_N, stop)
    all_to = tl.maximum(tl.maximum(tl.min(end, 0), 0) // BLOCK_N * BLOCK_N, all_from)
    return begin, all_from, all_to, stop


def documents(cu_seqlens: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Return the beginning and end of the document of each of `keys` tokens, int32 [keys] each."""
    # The host does not check the values of cu_seqlens; the clamp keeps them inside the tokens.
    bounds = torch.nn.functional.pad(cu_seqlens.to(torch.int32).clamp(0, keys), (1, 0))
    bounds = torch.nn.functional.pad(bounds, (0, 1), value=keys)
    tokens = torch.arange(keys, device=cu_seqlens.device, dtype=torch.int32)
    inner = torch.searchsorted(bounds[1:-1].contiguous(), tokens, right=True)
    return bounds[inner].contiguous(), bounds[inner + 1].contiguous()

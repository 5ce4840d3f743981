"""Which keys a query sees, as one interval of key indices for each query.

Causality, a sliding window, left padding, ragged lengths and packed documents all leave a query an
interval first ≤ j < end. So a tile of queries meets three runs of key blocks: some that only part
of it sees, some that all of it sees (no masking there), and again some that part of it sees.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keys_of_row(b, LENGTHS, KEYS):
    """Number of keys of batch row b; what LENGTHS holds is not checked on the host."""
    n_keys = KEYS
    if LENGTHS is not None:
        n_keys = tl.minimum(tl.maximum(tl.load(LENGTHS + b).to(tl.int32), 0), KEYS)
    return n_keys


@triton.jit
def interval(p, b, n_keys, STARTS, FIRSTS, ENDS, KEYS, window, CAUSAL: tl.constexpr):
    """first and end, int32, for queries that stand at key indices p.

    FIRSTS and ENDS [KEYS] say where the document of each index begins and ends.
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

"""Kernels of the feed-forward layer's activation, if a library computes its products."""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.activation import activated, differentiated


@triton.jit
def activate_kernel(
    PRE, GATE, HIDDEN, n,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write HIDDEN = f(PRE), or silu(GATE) ∘ PRE, of n elements; HIDDEN may be PRE."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    pre = tl.load(PRE + at, mask=inside, other=0.0).to(tl.float32)
    gate = pre
    if GATE is not None:
        gate = tl.load(GATE + at, mask=inside, other=0.0).to(tl.float32)
    hidden = activated(pre, gate, ACTIVATION, INTERPRETED)
    tl.store(HIDDEN + at, hidden.to(HIDDEN.dtype.element_ty), mask=inside)


@triton.jit
def differentiate(
    d, at, inside, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return d_pre = d ∘ f'(pre) of the elements `at` and store it and the other given results."""
    kind = D_PRE.dtype.element_ty
    pre = tl.load(PRE + at, mask=inside, other=0.0).to(tl.float32)
    gate = pre
    if PRE_GATE is not None:
        gate = tl.load(PRE_GATE + at, mask=inside, other=0.0).to(tl.float32)
    hidden, d_pre, d_gate = differentiated(d, pre, gate, ACTIVATION, INTERPRETED)
    tl.store(D_PRE + at, d_pre.to(kind), mask=inside)
    if D_GATE is not None:
        tl.store(D_GATE + at, d_gate.to(kind), mask=inside)
    if HIDDEN is not None:
        tl.store(HIDDEN + at, hidden.to(kind), mask=inside)
    return d_pre


@triton.jit(do_not_specialize=["M"])
def d_activate_kernel(
    D, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, SUMS, M, N,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write D_PRE = D ∘ f'(pre) and, for SwiGLU, the gate's gradient, of contiguous [M, N].

    D_PRE may be D. A program processes ROWS rows, BLOCK_M at a time. Unless they are None, HIDDEN
    gets f(pre) and SUMS [programs along rows, N] each program's column sums.
    """
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0) * ROWS
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in tl.range(first, tl.minimum(first + ROWS, M), BLOCK_M):
        rows = begin + tl.arange(0, BLOCK_M)
        at = rows.to(tl.int64)[:, None] * N + cols[None, :]
        inside = (rows < M)[:, None] & (cols < N)[None, :]
        d = tl.load(D + at, mask=inside, other=0.0).to(tl.float32)
        d_pre = differentiate(
            d, at, inside, PRE, PRE_GATE, D_PRE, D_GATE, HIDDEN, ACTIVATION, INTERPRETED
        )
        if SUMS is not None:
            sums += d_pre
    if SUMS is not None:
        to = SUMS + tl.program_id(0).to(tl.int64) * N + cols
        tl.store(to, tl.sum(sums, 0), mask=cols < N)

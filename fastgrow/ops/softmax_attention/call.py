"""Attention with rotary positions, in [B, H, T, D] layout (any strides).

    q̃, k̃ = rope(q), rope(k)
    w     = softmax over visible keys of scale · q̃ · k̃ᵀ
    y     = w · v

Several query heads may share a key/value head (H is a multiple of H_kv). There may be fewer queries
than keys, as when decoding with a cache: the queries then belong to the *last* tokens. Query i of
row b has the index p = n_b − Tq + i, where n_b is the row's number of keys, and attends to key j if

    starts[b] ≤ j < n_b                          (left padding, ragged cache)
    j ≤ p                                        (causal)
    p − j < window                               (sliding window)
    j and p are between the same cu_seqlens      (packed documents)

The result of a query that attends to no key is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError, argument_error, describe
from fastgrow.kernels.calls import AttentionCall, RopeCall
from fastgrow.ops.core.checks import (
    check_cu_seqlens,
    check_float,
    check_ids,
    check_range,
    check_rope,
)
from fastgrow.ops.core.dispatch import Implementation, Operation, triton_kernels
from fastgrow.ops.rotary import RopeTable, rope_table
from fastgrow.ops.softmax_attention import reference, sdpa, triton


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rope: RopeTable | None = None,
    position_ids: Tensor | None = None,
    k_rotated: bool = False,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """Compute scaled dot-product attention with optional rotary positions.

    Args:
        q: [B, H, Tq, D] float.
        k: [B, H_kv, Tk, D], Tk ≥ Tq.
        v: [B, H_kv, Tk, D].
        rope: cosines and sines [positions, R/2] (`rope_table`); None for no rotation.
        position_ids: [Tk] or [B, Tk], the keys' positions in the table; None for 0 … Tk − 1.
        k_rotated: whether the keys have been rotated already (a cache); then only queries are.
        scale: factor of the scores; None for 1/√D.
        causal: whether queries attend only to themselves and earlier keys.
        window: maximum number of keys that a query attends to, including its own.
        cu_seqlens: [n + 1] int32, cumulative lengths of packed documents: 0, …, Tk. Requires B = 1
            and Tq = Tk, and cannot be combined with `lengths`.
        lengths: [B] int32, each row's number of keys, at least 1; later keys are masked. Cannot be
            combined with `position_ids`.
        starts: [B] int32, index of each row's first key that is not padding.
        mask: broadcastable to [B, H, Tq, Tk]: bool (True is visible) or float (added to scores).
        dropout: probability of dropping an attention weight.
        impl: force an implementation.

    Returns:
        [B, H, Tq, D].

    Raises:
        ArgumentError: shapes, dtypes or devices do not match. Under FASTGROW_DEBUG=1 also if
            `cu_seqlens`, `position_ids`, `lengths` or `starts` have invalid values.
    """
    if q.dim() != 4 or q.shape[3] == 0:
        raise argument_error("attention", "q", "of shape [B, H, Tq, D] with D ≥ 1", describe(q))
    cos, sin = (None, None) if rope is None else rope
    factor = q.shape[3] ** -0.5 if scale is None else scale
    if window is not None:
        # Longer than any sequence; the kernels add it to 32-bit positions without overflow.
        window = min(window, 1 << 30)
    call = AttentionCall(
        q, k, v, cos, sin, position_ids, cu_seqlens, lengths, starts, mask,
        k_rotated, factor, causal, window, dropout,
    )  # fmt: skip
    _check(call)
    return _ATTENTION(call, impl)


def _check(call: AttentionCall) -> None:
    name = "attention"
    q, k, v, cos, sin, position_ids, cu_seqlens, lengths, starts, *_ = call
    check_float(name, "q", q)
    batch, heads, queries, dim = q.shape
    of_k = k.shape
    if len(of_k) != 4 or of_k[0] != batch or of_k[3] != dim or of_k[2] < queries:
        expected = f"of shape [{batch}, H_kv, at least {queries}, {dim}]"
        raise argument_error(name, "k", expected, describe(k))
    kv_heads, keys = of_k[1:3]
    if kv_heads == 0 or heads % kv_heads:
        raise ArgumentError(f"{name}: k has {kv_heads} heads, which must divide q's {heads}")
    if v.shape != of_k:
        raise argument_error(name, "v", f"of k's shape {list(of_k)}", describe(v))
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or k.device != device:
        raise argument_error(name, "k", f"{dtype} on {device} like q", describe(k))
    if v.dtype != dtype or v.device != device:
        raise argument_error(name, "v", f"{dtype} on {device} like q", describe(v))
    if call.window is not None and call.window < 1:
        raise argument_error(name, "window", "at least 1", call.window)
    if lengths is not None:
        _check_rows(name, "lengths", lengths, k)
        check_range(name, "lengths", lengths, 1, keys + 1)
        if cu_seqlens is not None or position_ids is not None:
            other = "position_ids" if cu_seqlens is None else "cu_seqlens"
            raise ArgumentError(f"{name}: lengths and {other} cannot be given together")
    if starts is not None:
        _check_rows(name, "starts", starts, k)
        # A row that is all padding starts after its last key.
        check_range(name, "starts", starts, 0, keys + 1)
    if cu_seqlens is not None:
        check_ids(name, "cu_seqlens", cu_seqlens)
        if cu_seqlens.device != device:
            raise argument_error(name, "cu_seqlens", f"on {device}", describe(cu_seqlens))
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or batch != 1 or keys != queries:
            expected = "of shape [documents + 1], with B = 1 and as many queries as keys"
            got = f"{describe(cu_seqlens)}, q {describe(q)}"
            raise argument_error(name, "cu_seqlens", expected, got)
        check_cu_seqlens(name, cu_seqlens, queries)
    if cos is not None and sin is not None:
        check_rope(name, "k", RopeCall(k, cos, sin, position_ids))


def _check_rows(name: str, argument: str, rows: Tensor, k: Tensor) -> None:
    check_ids(name, argument, rows)
    if rows.shape != k.shape[:1] or rows.device != k.device:
        expected = f"of shape [{k.shape[0]}] on {k.device}"
        raise argument_error(name, argument, expected, describe(rows))


def _example(device: torch.device) -> AttentionCall:
    q = torch.zeros(1, 2, 8, 32, device=device)
    return AttentionCall(q, q, q, *rope_table(8, 32, device=device))


_ATTENTION = Operation(
    "attention",
    (
        triton_kernels(triton.run, triton.can_serve, triton.pays),
        Implementation("sdpa", sdpa.run, alias="vendor"),
        Implementation("eager", reference.run),
    ),
    _example,
)

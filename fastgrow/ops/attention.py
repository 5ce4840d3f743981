"""Attention with rotary positions, in [B, H, T, D] layout (any strides).

    q̃, k̃ = rope(q), rope(k)
    w     = softmax over visible keys of scale · q̃ · k̃ᵀ
    y     = w · v

Several query heads may share a key/value head (H a multiple of H_kv). There may be fewer queries
than keys, as when decoding with a cache: the queries are then the *last* ones. Query i of row b
stands at index p = n_b − Tq + i, with n_b the row's number of keys, and sees key j if

    starts[b] ≤ j < n_b                          (left padding, ragged cache)
    j ≤ p                                        (causal)
    p − j < window                               (sliding window)
    j and p lie between the same cu_seqlens      (packed documents)

A query that sees no key gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops import _attention_triton, _sdpa
from fastgrow.ops.core.checks import check_cu_seqlens, check_float, check_ids, check_range
from fastgrow.ops.core.legacy import Operation
from fastgrow.ops.rope import RopeTable, check_rope, rope_eager, rope_table, rotated


class Visibility(NamedTuple):
    """Which keys a query sees; the fields are arguments of `attention`."""

    causal: bool = True
    window: int | None = None
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None
    starts: Tensor | None = None
    mask: Tensor | None = None


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
    """Attend from each query to the keys it may see.

    Args:
        q: [B, H, Tq, D] float.
        k: [B, H_kv, Tk, D], Tk ≥ Tq.
        v: [B, H_kv, Tk, D].
        rope: cosines and sines [positions, R/2] (`rope_table`); None for no rotation.
        position_ids: [Tk] or [B, Tk], the keys' positions in the table; 0 … Tk−1 without.
        k_rotated: the keys have been rotated already (a cache); then only queries are.
        scale: factor of the scores; 1/√D without.
        causal: a query sees no key after it.
        window: how many keys a query sees at most, its own included.
        cu_seqlens: [n + 1] int32, where packed documents begin and end: 0, …, Tk. Needs B = 1 and
            Tq = Tk, and no `lengths`.
        lengths: [B] int32, each row's number of keys, at least 1; later ones are not seen. Excludes
            `position_ids`.
        starts: [B] int32, each row's first key that is not padding.
        mask: broadcastable to [B, H, Tq, Tk]: bool (True is visible) or float (added to scores).
        dropout: probability of dropping a weight.
        impl: force an implementation.

    Returns:
        [B, H, Tq, D].

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together; under FASTGROW_DEBUG=1 also
            `cu_seqlens`, `position_ids`, `lengths` or `starts` that hold what they must not.
    """
    _check(q, k, v, window, cu_seqlens, lengths, starts)
    if lengths is not None and position_ids is not None:
        raise argument_error(
            "attention", "position_ids", "None where lengths are given", "a tensor"
        )
    if rope is not None:
        check_rope("attention", "k", k, rope, position_ids, 0)
    if window is not None:
        # More than any sequence has; kernels add it to positions of 32 bits.
        window = min(window, 1 << 30)
    visibility = Visibility(causal, window, cu_seqlens, lengths, starts, mask)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    return _OPERATION(
        q, k, v, rope, position_ids, k_rotated, factor, visibility, dropout, impl=impl
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    cu_seqlens: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
) -> None:
    name = "attention"
    if q.dim() != 4:
        raise argument_error(name, "q", "of shape [B, H, Tq, D]", describe(q))
    if q.shape[3] == 0:
        raise argument_error(name, "q", "of at least one feature a head", describe(q))
    check_float(name, "q", q)
    batch, heads, queries, dim = q.shape
    of_k = k.shape
    if len(of_k) != 4 or of_k[0] != batch or of_k[3] != dim or of_k[2] < queries:
        expected = f"of shape [{batch}, H_kv, at least {queries}, {dim}]"
        raise argument_error(name, "k", expected, describe(k))
    if of_k[1] == 0 or heads % of_k[1]:
        raise argument_error(name, "k", f"of heads that divide q's {heads}", describe(k))
    if v.shape != of_k:
        raise argument_error(name, "v", f"of k's shape {list(k.shape)}", describe(v))
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or k.device != device:
        raise argument_error(name, "k", f"{dtype} on {device} as q", describe(k))
    if v.dtype != dtype or v.device != device:
        raise argument_error(name, "v", f"{dtype} on {device} as q", describe(v))
    if window is not None and window < 1:
        raise argument_error(name, "window", "at least 1", window)
    if lengths is not None:
        _check_rows(name, "lengths", lengths, batch, k)
    if starts is not None:
        _check_rows(name, "starts", starts, batch, k)
    if cu_seqlens is not None:
        check_ids(name, "cu_seqlens", cu_seqlens)
        if lengths is not None:
            raise argument_error(
                name, "lengths", "None where cu_seqlens are given", describe(lengths)
            )
        if cu_seqlens.device != q.device:
            raise argument_error(name, "cu_seqlens", f"on {q.device}", describe(cu_seqlens))
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or batch != 1 or k.shape[2] != queries:
            expected = "of shape [documents + 1], with B = 1 and as many queries as keys"
            raise argument_error(
                name, "cu_seqlens", expected, f"{describe(cu_seqlens)}, q {describe(q)}"
            )
        check_cu_seqlens(name, cu_seqlens, queries)
    if lengths is not None:
        check_range(name, "lengths", lengths, 1, k.shape[2] + 1)
    if starts is not None:
        # A row of padding alone starts after its last key.
        check_range(name, "starts", starts, 0, k.shape[2] + 1)


def _check_rows(name: str, argument: str, rows: Tensor, batch: int, k: Tensor) -> None:
    check_ids(name, argument, rows)
    if tuple(rows.shape) != (batch,) or rows.device != k.device:
        raise argument_error(name, argument, f"of shape [{batch}] on {k.device}", describe(rows))


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    q = torch.zeros(1, 2, 8, 32, device=device)
    table = rope_table(8, 32, device=device)
    return (q, q, q, table, None, False, 32**-0.5, Visibility(), 0.0), {}


_OPERATION = Operation("attention", example=_example)


@_OPERATION.implementation("eager")
def attention_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    visibility: Visibility,
    dropout: float,
) -> Tensor:
    """The formula, as it stands: all scores are in memory at once."""
    q, k = _rotate(q, k, rope, position_ids, k_rotated, visibility.lengths, _eager)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.mT) * scale
    visible = visible_keys(visibility, q, k)
    added = visibility.mask
    if added is not None and added.dtype != torch.bool:
        scores = scores + added
    if visible is None:
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        # A softmax over no keys is NaN.
        weights = weights.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    return F.dropout(weights, dropout) @ v


@_OPERATION.implementation("vendor")
def attention_vendor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    visibility: Visibility,
    dropout: float,
) -> Tensor:
    """torch's scaled_dot_product_attention, after the rotation."""
    q, k = _rotate(q, k, rope, position_ids, k_rotated, visibility.lengths, rotated)
    group = q.shape[1] // k.shape[1]
    others = (visibility.window, visibility.cu_seqlens, visibility.lengths, visibility.starts)
    plain = visibility.mask is None and all(rule is None for rule in others)
    mask, blind, is_causal = None, None, False
    # torch.compile wants a constant here, which a branch on symbolic lengths gives.
    if plain and visibility.causal and 1 < q.shape[2] == k.shape[2]:
        is_causal = True
    else:
        mask, blind = _mask_for_sdpa(visibility, q, k)
    if mask is not None and group > 1 and q.device.type == "cuda":
        # There the fused kernels take either a mask or grouped heads.
        k, v, group = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), 1
    y = _sdpa.attend(q, k, v, mask, dropout, is_causal, scale, group > 1)
    return y if blind is None else y.masked_fill(blind, 0.0)


def _mask_for_sdpa(
    visibility: Visibility, q: Tensor, k: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The mask, and which queries see no key: SDPA's backends differ there, so they get to see."""
    visible, added = visible_keys(visibility, q, k), visibility.mask
    blind = None
    ragged = visibility.lengths is not None and q.shape[2] > 1
    if visible is not None and (visibility.starts is not None or added is not None or ragged):
        blind = ~visible.any(-1, keepdim=True)
    if added is None or added.dtype == torch.bool:
        return visible if visible is None or blind is None else visible | blind, blind
    if visible is not None:
        added = torch.where(visible, added, float("-inf"))
        added = added if blind is None else added.masked_fill(blind, 0.0)
    return added.to(q.dtype), blind


_OPERATION.implementation(
    "triton", verify=_attention_triton.can_serve, pays=_attention_triton.pays
)(_attention_triton.attention_triton)


def visible_keys(visibility: Visibility, q: Tensor, k: Tensor) -> Tensor | None:
    """The rules as a bool mask that broadcasts to [B, H, Tq, Tk]; None where all keys are seen."""
    queries, keys = q.shape[2], k.shape[2]
    j = torch.arange(keys, device=q.device)
    p = torch.arange(keys - queries, keys, device=q.device)[:, None]
    rules: list[Tensor] = []
    if visibility.lengths is not None:
        lengths = visibility.lengths[:, None, None, None]
        p = lengths - keys + p
        rules.append(j < lengths)
    if visibility.starts is not None:
        rules.append(j >= visibility.starts[:, None, None, None])
    if visibility.causal and queries > 1:
        rules.append(j <= p)
    if visibility.window is not None:
        rules.append(p - j < visibility.window)
    if visibility.cu_seqlens is not None:
        document = torch.searchsorted(visibility.cu_seqlens.to(j.dtype), j, right=True)
        rules.append(document[:, None] == document)
    if visibility.mask is not None and visibility.mask.dtype == torch.bool:
        rules.append(visibility.mask)
    if not rules:
        return None
    visible = rules[0]
    for rule in rules[1:]:
        visible = visible & rule
    return visible


def _rotate(
    q: Tensor,
    k: Tensor,
    table: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    lengths: Tensor | None,
    turn: Callable[[Tensor, RopeTable, Tensor | None, int], Tensor],
) -> tuple[Tensor, Tensor]:
    if table is None:
        return q, k
    queries, keys = q.shape[2], k.shape[2]
    of_queries = None
    if position_ids is not None:
        of_queries = position_ids[..., keys - queries :]
    elif lengths is not None:
        of_queries = lengths[:, None] + torch.arange(-queries, 0, device=q.device)
        # Queries before the row's first key see nothing; the table only has to have a row for them.
        of_queries = of_queries.clamp(min=0)
    q = turn(q, table, of_queries, keys - queries)
    return q, k if k_rotated else turn(k, table, position_ids, 0)


def _eager(x: Tensor, table: RopeTable, position_ids: Tensor | None, offset: int) -> Tensor:
    return rope_eager(x, *table, position_ids, offset)

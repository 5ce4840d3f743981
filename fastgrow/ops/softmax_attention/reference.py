"""Attention in plain PyTorch: all scores are in memory at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import AttentionCall, RopeCall
from fastgrow.ops.rotary import reference as rotary


def run(call: AttentionCall) -> Tensor:
    """Return the attention output."""
    (q, k), v = rotated(call, rotary.run), call.v
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.mT) * call.scale
    visible = visible_keys(call)
    if call.mask is not None and call.mask.dtype != torch.bool:
        scores = scores + call.mask
    if visible is None:
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        # A softmax over no keys is NaN.
        weights = weights.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    return F.dropout(weights, call.dropout) @ v


def rotated(call: AttentionCall, turn: Callable[[RopeCall], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the queries and keys, rotated by their positions if the call has a table."""
    q, k, cos, sin, position_ids = call.q, call.k, call.cos, call.sin, call.position_ids
    if cos is None or sin is None:
        return q, k
    queries, keys = q.shape[2], k.shape[2]
    of_queries = None
    if position_ids is not None:
        of_queries = position_ids[..., keys - queries :]
    elif call.lengths is not None:
        of_queries = call.lengths[:, None] + torch.arange(-queries, 0, device=q.device)
        # Queries before the row's first key attend to nothing; any position in the table will do.
        of_queries = of_queries.clamp(min=0)
    q = turn(RopeCall(q, cos, sin, of_queries, keys - queries))
    return q, k if call.k_rotated else turn(RopeCall(k, cos, sin, position_ids))


def visible_keys(call: AttentionCall) -> Tensor | None:
    """Return a bool mask broadcastable to [B, H, Tq, Tk], or None if all keys are visible."""
    queries, keys, device = call.q.shape[2], call.k.shape[2], call.q.device
    j = torch.arange(keys, device=device)
    p = torch.arange(keys - queries, keys, device=device)[:, None]
    rules: list[Tensor] = []
    if call.lengths is not None:
        lengths = call.lengths[:, None, None, None]
        p = lengths - keys + p
        rules.append(j < lengths)
    if call.starts is not None:
        rules.append(j >= call.starts[:, None, None, None])
    if call.causal and queries > 1:
        rules.append(j <= p)
    if call.window is not None:
        rules.append(p - j < call.window)
    if call.cu_seqlens is not None:
        document = torch.searchsorted(call.cu_seqlens.to(j.dtype), j, right=True)
        rules.append(document[:, None] == document)
    if call.mask is not None and call.mask.dtype == torch.bool:
        rules.append(call.mask)
    return functools.reduce(torch.logical_and, rules) if rules else None

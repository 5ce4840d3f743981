"""Attention by Triton kernels: when they serve, the operators, the gradients.

Nothing rotated is saved for the backward pass, which rotates queries and keys again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.kernels.calls import AttentionCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype
from fastgrow.ops.core.registration import differentiable, launched_by, needs_gradient
from fastgrow.ops.rotary.triton import empty_by_token

MAX_HEAD_DIM = 256
# What fastgrow.kernels.attention_tiles takes for it, and the keys from which splitting them counts.
MAX_DECODED_QUERIES, MAX_DECODED_ROWS, SPLIT_KEYS = 8, 64, 1024
# Of a call's fields those that are tensors; the others follow.
TENSORS = AttentionCall._fields.index("k_rotated")


def can_serve(call: AttentionCall) -> Answer:
    """Whether the kernels take the head dimension and the rules."""
    if call.q.shape[3] > MAX_HEAD_DIM:
        return False, f"it serves head dimensions to {MAX_HEAD_DIM}, not {call.q.shape[3]}"
    if call.mask is not None:
        return False, "it takes no mask"
    return (False, "it has no dropout") if call.dropout > 0 else (True, "")


def pays(call: AttentionCall) -> Answer:
    """By counting products, exponentials, bytes and launches: not measured.

    - A mask costs SDPA its fastest kernels and, as scores, memory: ours are taken.
    - Training: of each score our two backward kernels make seven products of D numbers and two
      exponentials, as neither writes what the other needs and nothing is added atomically;
      FlashAttention's one kernel makes five and one. A full pass is nine and three against seven
      and two, and the exponentials bound it at small D: SDPA's is taken at every head dimension.
    - Inference at D ≤ 32: two products and one exponential on either side. The exponential unit
      bounds it, and ours can do without the running maximum, for which others rescale: ours.
    - Few queries are bound by reading the keys and by launches. SDPA's flash kernel splits the
      keys too (torch's flash_api.cpp: set_params_splitkv asks for as many splits as fill the GPU)
      and reads those of grouped heads once for one query: two launches on either side, of the same
      bytes. Ours rotates the queries inside, where SDPA takes a launch more, reads the keys once
      for several grouped queries, where SDPA reads them for each of its heads, and splits in fp32
      and at head dimensions that are no multiple of 8, which flash does not take as they are.
    """
    (_, heads, queries, dim), (_, kv_heads, keys, _) = call.q.shape, call.k.shape
    rules = (call.window, call.cu_seqlens, call.lengths, call.starts)
    if any(rule is not None for rule in rules) or (call.causal and 1 < queries < keys):
        return True, "SDPA would need a mask of all scores"
    if needs_gradient(*call[:3]):
        why = "with gradients SDPA makes 7 products and 2 exponentials a score, ours 9 and 3"
        return False, why
    # As many rows as a decoding program takes: a key head's queries.
    group = heads // kv_heads
    if queries <= MAX_DECODED_QUERIES and queries * group <= MAX_DECODED_ROWS:
        if call.cos is not None:
            return True, "it rotates a few queries on the way, for which SDPA takes a launch more"
        if keys >= SPLIT_KEYS:
            if queries > 1 and group > 1:
                return True, "it reads the keys once for all queries, SDPA once for each head"
            if call.q.dtype == torch.float32 or dim % 8:
                return True, "it splits the keys of a few queries, as SDPA does in half precision"
            return False, "SDPA splits the keys of a few queries too, in as many launches"
    if dim <= 32 and call.q.dtype != torch.float32:
        return True, "SDPA's kernels are made for larger heads"
    return False, "SDPA's kernels are made for this head dimension"


def run(call: AttentionCall) -> Tensor:
    """The kernels of fastgrow.kernels.attention."""
    if torch.is_autocast_enabled(call.q.device.type):
        dtype = compute_dtype(call.q)
        q, k, v = (x.to(dtype) for x in call[:3])
        call = AttentionCall(q, k, v, *call[3:])
    return _attend(*call) if needs_gradient(*call[:3]) else attention_inference(*call)


@launched_by("attention.inference")
def attention_inference(call: AttentionCall) -> Tensor:
    """The result alone."""
    return empty_by_token(call.q)


@launched_by("attention.forward")
def attention_forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The result, and log2 of each softmax's sum."""
    return empty_by_token(call.q), call.q.new_empty(call.q.shape[:3], dtype=torch.float32)


@launched_by("attention.backward")
def attention_backward(
    call: AttentionCall, d_out: Tensor, out: Tensor, lse: Tensor, for_query: bool, for_key: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, and of k and v."""
    dk, dv = (empty_by_token(call.k), empty_by_token(call.v)) if for_key else (None, None)
    return empty_by_token(call.q) if for_query else None, dk, dv


def _forward(ctx: Any, call: AttentionCall) -> Tensor:
    out, lse = attention_forward(*call)
    ctx.save_for_backward(out, lse, *call[:TENSORS])
    ctx.numbers = call[TENSORS:]
    return out


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    wants_q, wants_k, wants_v, *_ = ctx.needs_input_grad
    call = AttentionCall(*tensors, *ctx.numbers)
    dq, dk, dv = attention_backward(*call, d_out, out, lse, wants_q, wants_k or wants_v)
    return dq if wants_q else None, dk if wants_k else None, dv if wants_v else None


_attend = differentiable("attention", AttentionCall, _forward, _backward)

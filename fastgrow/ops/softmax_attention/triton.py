"""Attention with Triton kernels: supported calls, operators, gradients.

Rotated queries and keys are not saved for the backward pass, which rotates them again.
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
# Limits of decoding in fastgrow.kernels.attention_tiles, and the number of keys from which
# splitting the keys pays.
MAX_DECODED_QUERIES, MAX_DECODED_ROWS, SPLIT_KEYS = 8, 64, 1024
# Number of a call's fields that are tensors; the other fields follow them.
TENSORS = AttentionCall._fields.index("k_rotated")


def can_serve(call: AttentionCall) -> Answer:
    """Whether the kernels support the head dimension and the masking rules."""
    if call.q.shape[3] > MAX_HEAD_DIM:
        return False, f"it supports head dimensions up to {MAX_HEAD_DIM}, not {call.q.shape[3]}"
    if call.mask is not None:
        return False, "it does not support a mask"
    return (False, "it does not support dropout") if call.dropout > 0 else (True, "")


def pays(call: AttentionCall) -> Answer:
    """Estimated from the products, exponentials, bytes and launches; not measured.

    - Rules other than plain causal attention (window, cu_seqlens, lengths, starts) need a mask in
      SDPA, which excludes its fastest kernels and takes memory: the Triton kernels are used.
    - Training: for each score the two Triton backward kernels compute seven products of D numbers
      and two exponentials, because they share no intermediate results and use no atomic additions;
      FlashAttention's single kernel computes five and one. Forward and backward together are nine
      and three, compared with seven and two; at small D the exponentials limit the speed. SDPA is
      used at every head dimension.
    - Inference at D ≤ 32: both compute two products and one exponential. The exponential unit
      limits the speed, and the Triton kernels need no running maximum and rescaling: they are used.
    - With few queries, reading the keys and the launches limit the speed. SDPA's flash kernel
      splits the keys too (set_params_splitkv in torch's flash_api.cpp chooses enough splits to fill
      the GPU) and reads those of grouped heads once for one query: both take two launches and read
      the same bytes. The Triton kernels rotate the queries themselves, for which SDPA needs one
      more launch; they read the keys once for several grouped queries, while SDPA reads them for
      each head; and they split the keys in fp32 and at head dimensions that are not multiples of 8,
      which flash does not support directly.
    """
    (_, heads, queries, dim), (_, kv_heads, keys, _) = call.q.shape, call.k.shape
    rules = (call.window, call.cu_seqlens, call.lengths, call.starts)
    if any(rule is not None for rule in rules) or (call.causal and 1 < queries < keys):
        return True, "SDPA would need a mask of all scores"
    if needs_gradient(*call[:3]):
        why = "with gradients SDPA computes 7 products and 2 exponentials per score, Triton 9 and 3"
        return False, why
    # A decoding program handles the queries of one key head.
    group = heads // kv_heads
    if queries <= MAX_DECODED_QUERIES and queries * group <= MAX_DECODED_ROWS:
        if call.cos is not None:
            return True, "it rotates a few queries in the kernel, SDPA needs one more launch"
        if keys >= SPLIT_KEYS:
            if queries > 1 and group > 1:
                return True, "it reads the keys once for all queries, SDPA once for each head"
            if call.q.dtype == torch.float32 or dim % 8:
                return True, "it splits the keys of a few queries, as SDPA does in half precision"
            return False, "SDPA splits the keys of a few queries too, in as many launches"
    if dim <= 32 and call.q.dtype != torch.float32:
        return True, "SDPA's kernels are optimised for larger heads"
    return False, "SDPA's kernels are optimised for this head dimension"


def run(call: AttentionCall) -> Tensor:
    """Run the kernels of fastgrow.kernels.attention."""
    if torch.is_autocast_enabled(call.q.device.type):
        dtype = compute_dtype(call.q)
        q, k, v = (x.to(dtype) for x in call[:3])
        call = AttentionCall(q, k, v, *call[3:])
    return _attend(*call) if needs_gradient(*call[:3]) else attention_inference(*call)


# Functions decorated with `launched_by` only make empty results, for torch.compile; the launchers
# in fastgrow.kernels compute them.
@launched_by("attention.inference")
def attention_inference(call: AttentionCall) -> Tensor:
    """Return the result."""
    return empty_by_token(call.q)


@launched_by("attention.forward")
def attention_forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return the result, and log2 of each softmax's sum."""
    return empty_by_token(call.q), call.q.new_empty(call.q.shape[:3], dtype=torch.float32)


@launched_by("attention.backward")
def attention_backward(
    call: AttentionCall, d_out: Tensor, out: Tensor, lse: Tensor, for_query: bool, for_key: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, k and v."""
    dk, dv = (empty_by_token(call.k), empty_by_token(call.v)) if for_key else (None, None)
    return empty_by_token(call.q) if for_query else None, dk, dv


def _forward(ctx: Any, call: AttentionCall) -> Tensor:
    out, lse = attention_forward(*call)
    ctx.save_for_backward(out, lse, *call[:TENSORS])
    ctx.numbers = call[TENSORS:]
    return out


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    needs_q, needs_k, needs_v, *_ = ctx.needs_input_grad
    call = AttentionCall(*tensors, *ctx.numbers)
    dq, dk, dv = attention_backward(*call, d_out, out, lse, needs_q, needs_k or needs_v)
    return dq if needs_q else None, dk if needs_k else None, dv if needs_v else None


_attend = differentiable("attention", AttentionCall, _forward, _backward)

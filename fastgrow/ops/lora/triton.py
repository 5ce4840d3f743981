"""The layer with a low-rank correction with Triton kernels: operators and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.kernels.calls import LoraCall, LoraGradient
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype, in_dtype
from fastgrow.ops.core.registration import differentiable, launched_by, needs_gradient

# After cuBLAS's product, adding the low-rank product reads and writes the output once more. With F
# the product's FLOP/s, W the memory bandwidth and K the contracted width, this takes
# 2 · F / (K · W) of the product's time: about 300 / K on an H200 in bf16, by its data sheet. A
# portable Triton kernel may lose a fifth of the product's speed.
MAX_WIDTH, MAX_RANK = 1024, 64
# With fewer tiles of 128 x 128 than an H200 has multiprocessors some are idle; cuBLAS splits the
# contraction instead.
MIN_OUTPUT = 132 * 128 * 128


def pays(call: LoraCall) -> Answer:
    """True if avoiding a pass over the output outweighs cuBLAS's speed: estimated, not measured."""
    if compute_dtype(call.x) == torch.float32:
        return False, "cuBLAS's float32 products are faster"
    (out, width), rank = call.weight.shape, call.a.shape[0]
    if width % 16 or out % 16:
        return False, "widths that are not multiples of 16 load slowly"
    if needs_gradient(call.x):
        width = max(width, out)
    if width > MAX_WIDTH:
        return False, f"the low-rank part is too small a share of a product over {width} features"
    if rank > MAX_RANK:
        return False, f"rank {rank} is above {MAX_RANK}"
    if call.x.numel() // max(call.x.shape[-1], 1) * out < MIN_OUTPUT:
        return False, "the output has too few tiles for the GPU"
    return True, "the low-rank part takes no separate pass over the output"


def run(call: LoraCall) -> Tensor:
    """Apply the layer to x [..., in]; under autocast with the dtype of F.linear."""
    x, weight, a, b, bias, scale = call
    dtype = compute_dtype(x)
    rows = in_dtype(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]), dtype)
    weight, bias = in_dtype(weight, dtype), in_dtype(bias, dtype)
    if needs_gradient(x, a, b):
        y = _trained(rows, weight, a, b, bias, scale)
    else:
        y, _ = lora_linear_forward(rows, weight, a, b, bias, scale)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


# Functions decorated with `launched_by` only make empty results, for torch.compile; the launchers
# in fastgrow.kernels compute them.
@launched_by("lora.forward")
def lora_linear_forward(call: LoraCall) -> tuple[Tensor, Tensor]:
    """Return y, and x · aᵀ."""
    rows = call.x.shape[0]
    return call.x.new_empty(rows, call.weight.shape[0]), call.x.new_empty(rows, call.a.shape[0])


@launched_by("lora.backward")
def lora_linear_backward(
    call: LoraGradient,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, a and b."""
    dy, x, u, weight, a, b, _ = call
    return (
        None if weight is None else dy.new_empty(dy.shape[0], weight.shape[1]),
        None if x is None else a.new_empty(a.shape),
        None if u is None else b.new_empty(b.shape),
    )


def _forward(ctx: Any, call: LoraCall) -> Tensor:
    """Save x for a's gradient and u for b's, each only if that gradient is needed."""
    y, u = lora_linear_forward(*call)
    for_x, _, for_a, for_b, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        call.x if for_a else None,
        u if for_b else None,
        call.weight if for_x else None,
        call.a,
        call.b,
    )
    ctx.scale = call.scale
    return y


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, da, db = lora_linear_backward(dy, *ctx.saved_tensors, ctx.scale)
    for_x, _, for_a, for_b, *_ = ctx.needs_input_grad
    return dx if for_x else None, None, da if for_a else None, db if for_b else None


_trained = differentiable("lora_linear", LoraCall, _forward, _backward)

"""`rope` by a Triton kernel: when it serves, the operator, the gradient.

Rotating by the negative angle is both the inverse and the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.kernels.calls import RopeCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import needs_gradient, operator

MAX_HEAD_DIM = 512


def can_serve(call: RopeCall) -> Answer:
    """Whether the kernel can run."""
    ok, reason = dispatch.triton_can_run(call.x)
    if not ok:
        return False, reason
    if call.x.shape[3] > MAX_HEAD_DIM:
        return False, f"it serves head dimensions to {MAX_HEAD_DIM}, not {call.x.shape[3]}"
    return True, ""


def pays(call: RopeCall) -> Answer:
    """By counting: eager reads and writes about nine tensors of x's size, in nine launches."""
    ok, reason = dispatch.triton_pays_on(call.x)
    return (True, "one launch takes the place of nine") if ok else (False, reason)


def run(call: RopeCall) -> Tensor:
    """The kernel of fastgrow.kernels.rotation."""
    return _Rope.apply(*call) if needs_gradient(call.x) else rope(*call)


def empty_by_token(x: Tensor) -> Tensor:
    """[B, H, T, D] laid out as [B, T, H, D], as projections leave it and SDPA's kernels read it."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


@operator(lambda call: empty_by_token(call.x))
def rope(call: RopeCall) -> Tensor:
    """x, rotated."""
    from fastgrow.kernels.attention import rotate, rotation_arguments

    out = empty_by_token(call.x)
    arguments = rotation_arguments(call.cos, call.sin, call.position_ids)
    rotate(call.x, arguments, out, offset=call.offset, inverse=call.inverse)
    return out


class _Rope(torch.autograd.Function):
    """Keeps what says by how much x was turned, and nothing of x."""

    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        _, cos, sin, position_ids, offset, inverse = fields
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.numbers = offset, inverse
        return rope(*fields)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        offset, inverse = ctx.numbers
        d_x = _Rope.apply(*gradients, *ctx.saved_tensors, offset, not inverse)
        return d_x, None, None, None, None, None

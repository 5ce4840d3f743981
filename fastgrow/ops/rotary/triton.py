"""`rope` with a Triton kernel: supported calls, operator, gradient.

Rotating by the negative angle is both the inverse and the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.kernels.calls import RopeCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import launched_by, needs_gradient

MAX_HEAD_DIM = 512


def can_serve(call: RopeCall) -> Answer:
    """Whether the kernel supports the head dimension."""
    if call.x.shape[3] > MAX_HEAD_DIM:
        return False, f"it supports head dimensions up to {MAX_HEAD_DIM}, not {call.x.shape[3]}"
    return True, ""


def pays(call: RopeCall) -> Answer:
    """Always true: eager reads and writes about nine tensors of x's size, in nine launches."""
    return True, "one launch replaces nine"


def run(call: RopeCall) -> Tensor:
    """Run the kernel of fastgrow.kernels.rotation."""
    return _Rope.apply(*call) if needs_gradient(call.x) else rope(*call)


def empty_by_token(x: Tensor) -> Tensor:
    """Allocate a result [B, H, T, D] with the memory layout [B, T, H, D]; sizes may be symbolic."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


# A function decorated with `launched_by` only makes empty results, for torch.compile; the launcher
# in fastgrow.kernels computes them.
@launched_by("attention.rope")
def rope(call: RopeCall) -> Tensor:
    """Return x, rotated."""
    return empty_by_token(call.x)


class _Rope(torch.autograd.Function):
    """Saves the table and the positions, but not x."""

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

"""The Triton implementation of `rope`: when it serves, its torch.library op, its gradient.

Rotating by the negative angle is both the inverse and the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer

MAX_HEAD_DIM = 512


def can_serve(
    x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, offset: int
) -> Answer:
    """The verifier."""
    ok, reason = triton_support.can_run(x)
    if not ok:
        return False, reason
    if x.shape[3] > MAX_HEAD_DIM:
        return False, f"it serves head dimensions to {MAX_HEAD_DIM}, not {x.shape[3]}"
    return True, ""


def pays(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, offset: int) -> Answer:
    """By counting: eager reads and writes about nine tensors of x's size, in nine launches."""
    ok, reason = triton_support.pays_on(x)
    return (True, "one launch takes the place of nine") if ok else (False, reason)


def rope_triton(
    x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, offset: int
) -> Tensor:
    """The kernel of fastgrow.kernels.rope."""
    arguments = (x, cos.float().contiguous(), sin.float().contiguous(), position_ids, offset)
    y: Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        y = _Rope.apply(*arguments, False)
    else:
        y = torch.ops.fastgrow.rope(*arguments, False)
    return y


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "rope(Tensor x, Tensor cos, Tensor sin, Tensor? position_ids, SymInt offset, bool inverse) "
    "-> Tensor"
)


def _rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    offset: int,
    inverse: bool,
) -> Tensor:
    from fastgrow.kernels.rope import rotate

    if position_ids is not None:
        # A row for all sequences is read as such, without a stride.
        shared = position_ids.dim() == 2 and position_ids.shape[0] == 1
        position_ids = (position_ids[0] if shared else position_ids).contiguous()
    return rotate(x, cos, sin, position_ids, offset, inverse=inverse)


for _key in ("CPU", "CUDA"):
    _library.impl("rope", _rotate, _key)


@torch.library.register_fake("fastgrow::rope", lib=_library)
def _(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    offset: int,
    inverse: bool,
) -> Tensor:
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


class _Rope(torch.autograd.Function):
    """Keeps what says by how much x was turned, and nothing of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        position_ids: Tensor | None,
        offset: int,
        inverse: bool,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.offset, ctx.inverse = offset, inverse
        y: Tensor = torch.ops.fastgrow.rope(x, cos, sin, position_ids, offset, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, position_ids = ctx.saved_tensors
        (d_y,) = gradients
        d_x: Tensor = _Rope.apply(d_y, cos, sin, position_ids, ctx.offset, not ctx.inverse)
        return d_x, None, None, None, None, None

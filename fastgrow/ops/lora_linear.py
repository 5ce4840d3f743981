"""A frozen linear layer with a trainable low-rank correction (LoRA, arXiv 2106.09685, §4.1).

    u = x · aᵀ
    y = x · weightᵀ + bias + scale · u · bᵀ

`weight` and `bias` are frozen: what is kept for the backward pass is x and u [..., r] alone, and

    dx = dy · weight + scale · (dy · b) · a
    da = scale · (dy · b)ᵀ · x
    db = scale · dyᵀ · u

Dropout of the low-rank part's input is not part of the operation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops import _lora_triton
from fastgrow.ops._check import (
    check_float,
    check_like,
    describe,
    refuse,
    refuse_double_backward,
)
from fastgrow.ops._dispatch import Operation
from fastgrow.ops._lora_triton import is_frozen, under_autocast

NAME = "lora_linear"


def lora_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    impl: str | None = None,
) -> Tensor:
    """A linear layer plus a low-rank one; gradients go to x, a and b.

    Products run in the dtype of `x`. `a` and `b` may be kept in float32 beside half-precision
    weights; their gradients come in their own dtype.

    Args:
        x: [..., in] float.
        weight: [out, in], dtype of `x`; frozen. If it requires a gradient, or `bias` does, the
            automatic choice is `eager`, which gives it, and the others refuse.
        a: [r, in], dtype of `x` or float32.
        b: [out, r], dtype of `a`.
        bias: [out], optional, dtype of `weight`; frozen.
        scale: factor of the low-rank part, α / r in the paper.
        impl: force an implementation.

    Returns:
        [..., out], dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together.
    """
    _check(x, weight, a, b, bias)
    y: Tensor = _OPERATION(x, weight, a, b, bias, scale, impl=impl)
    return y


def _check(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    if x.dim() == 0:
        raise refuse(NAME, "x", "of shape [..., in]", describe(x))
    check_float(NAME, "x", x)
    width = x.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width:
        raise refuse(NAME, "weight", f"of shape [out, {width}]", describe(weight))
    check_like(NAME, "weight", weight, tuple(weight.shape), x)
    check_like(NAME, "bias", bias, (weight.shape[0],), weight)
    if a.dim() != 2 or a.shape[1] != width or a.shape[0] < 1:
        raise refuse(NAME, "a", f"of shape [at least 1, {width}]", describe(a))
    if tuple(b.shape) != (weight.shape[0], a.shape[0]):
        expected = f"of shape [{weight.shape[0]}, {a.shape[0]}]"
        raise refuse(NAME, "b", expected, describe(b))
    for argument, tensor in (("a", a), ("b", b)):
        if tensor.device != x.device:
            raise refuse(NAME, argument, f"on {x.device}", describe(tensor))
    autocast = torch.is_autocast_enabled(x.device.type)
    if a.dtype not in (x.dtype, torch.float32) and not autocast:
        raise refuse(NAME, "a", f"of dtype {x.dtype} or torch.float32", describe(a))
    if b.dtype != a.dtype:
        raise refuse(NAME, "b", f"of dtype {a.dtype} as a", describe(b))


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, a = torch.zeros(2, 32, device=device), torch.zeros(4, 32, device=device)
    return (x, torch.zeros(64, 32, device=device), a, a.new_zeros(64, 4), None, 1.0), {}


_OPERATION = Operation(NAME, example=_example)


@_OPERATION.implementation("eager")
def lora_linear_eager(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The formula, as it stands."""
    u = F.linear(x, a.to(x.dtype))
    return F.linear(x, weight, bias) + scale * F.linear(u, b.to(u.dtype))


@_OPERATION.implementation("vendor", verify=is_frozen)
def lora_linear_vendor(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The library's products; the low-rank one is added in place by the second of them."""
    x, weight, bias = under_autocast(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
        needed = (x.requires_grad, a.requires_grad, b.requires_grad)
        y = _LoraLinear.apply(rows, weight, a, b, bias, scale, needed)
    else:
        y, _ = _products(rows, weight, a, b, bias, scale)
    return y.view(*x.shape[:-1], weight.shape[0])


def _products(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    u = F.linear(x, a.to(x.dtype))
    y = F.linear(x, weight, bias)
    return y.addmm_(u, b.to(x.dtype).T, alpha=scale), u


class _LoraLinear(torch.autograd.Function):
    """Keeps x for a's gradient and u for b's, each only where that is wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        scale: float,
        needed: tuple[bool, bool, bool],
    ) -> Tensor:
        y, u = _products(x, weight, a, b, bias, scale)
        for_x, for_a, for_b = needed
        ctx.save_for_backward(
            weight if for_x else None,
            a if for_x else None,
            b if for_x or for_a else None,
            x if for_a else None,
            u if for_b else None,
        )
        ctx.scale, ctx.dtype = scale, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward(NAME)
        (dy,) = gradients
        weight, a, b, x, u = ctx.saved_tensors
        dx = da = db = None
        with torch.autocast(dy.device.type, enabled=False):
            narrow = None if b is None else dy @ b.to(dy.dtype)
            if weight is not None and a is not None:
                dx = (dy @ weight).addmm_(narrow, a.to(dy.dtype), alpha=ctx.scale)
            if x is not None and narrow is not None:
                da = (narrow.T @ x).to(ctx.dtype).mul_(ctx.scale)
            if u is not None:
                db = (dy.T @ u).to(ctx.dtype).mul_(ctx.scale)
        return dx, None, da, db, None, None, None


_OPERATION.implementation("triton", verify=_lora_triton.can_serve, pays=_lora_triton.pays)(
    _lora_triton.lora_linear_triton
)

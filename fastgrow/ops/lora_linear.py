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

from fastgrow.errors import argument_error, describe
from fastgrow.ops import _lora_triton
from fastgrow.ops._lora_triton import is_frozen
from fastgrow.ops.core.checks import check_float, check_like
from fastgrow.ops.core.legacy import Operation

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
        raise argument_error(NAME, "x", "of shape [..., in]", describe(x))
    check_float(NAME, "x", x)
    width = x.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width:
        raise argument_error(NAME, "weight", f"of shape [out, {width}]", describe(weight))
    check_like(NAME, "weight", weight, tuple(weight.shape), x)
    check_like(NAME, "bias", bias, (weight.shape[0],), weight)
    if a.dim() != 2 or a.shape[1] != width or a.shape[0] < 1:
        raise argument_error(NAME, "a", f"of shape [at least 1, {width}]", describe(a))
    if tuple(b.shape) != (weight.shape[0], a.shape[0]):
        expected = f"of shape [{weight.shape[0]}, {a.shape[0]}]"
        raise argument_error(NAME, "b", expected, describe(b))
    for argument, tensor in (("a", a), ("b", b)):
        if tensor.device != x.device:
            raise argument_error(NAME, argument, f"on {x.device}", describe(tensor))
    autocast = torch.is_autocast_enabled(x.device.type)
    if a.dtype not in (x.dtype, torch.float32) and not autocast:
        raise argument_error(NAME, "a", f"of dtype {x.dtype} or torch.float32", describe(a))
    if b.dtype != a.dtype:
        raise argument_error(NAME, "b", f"of dtype {a.dtype} as a", describe(b))


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
    """The library's products; the last one adds to the first in place, scaled on the way.

    Of frozen tensors and of its own products autograd keeps no more than the operation promises.
    """
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    u = F.linear(rows, a.to(x.dtype))
    y = F.linear(rows, weight, bias)
    y.addmm_(u, b.to(u.dtype).T, alpha=scale)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


_OPERATION.implementation("triton", verify=_lora_triton.can_serve, pays=_lora_triton.pays)(
    _lora_triton.lora_linear_triton
)

"""Layer normalisation, with the residual addition before it where there is one.

s = x + residual
y = (s − mean(s)) / √(var(s) + eps) · weight + bias      over the last axis, biased variance
"""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops._check import check_float, check_like, describe, refuse
from fastgrow.ops._dispatch import Operation


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-5,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis.

    Args:
        x: [..., d] float.
        weight: [d].
        bias: [d], optional.
        residual: the shape of `x`, optional; added first.
        eps: added to the variance.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) where a residual is given; shape and dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together.
    """
    check_norm("layer_norm", x, weight, bias, residual)
    return _OPERATION(x, weight, bias, residual, eps, impl=impl)


def check_norm(
    operation: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    """The checks that both norms share."""
    if x.dim() == 0:
        raise refuse(operation, "x", "of shape [..., d]", describe(x))
    check_float(operation, "x", x)
    if tuple(weight.shape) != tuple(x.shape[-1:]):
        raise refuse(operation, "weight", f"of shape [{x.shape[-1]}]", describe(weight))
    if weight.device != x.device:
        raise refuse(operation, "weight", f"on {x.device}", describe(weight))
    check_like(operation, "bias", bias, tuple(weight.shape), weight)
    check_like(operation, "residual", residual, tuple(x.shape), x)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.zeros(2, 32, device=device)
    return (x, x[0], x[0], None, 1e-5), {}


_OPERATION = Operation("layer_norm", example=_example)


@_OPERATION.implementation("eager")
def layer_norm_eager(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula, as it stands; statistics of half-precision inputs in float32."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    centred = wide - wide.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    y = (y if bias is None else y + bias).to(x.dtype)
    return y if residual is None else (y, total)


@_OPERATION.implementation("vendor")
def layer_norm_vendor(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """torch's fused kernel."""
    total = x if residual is None else x + residual
    y = F.layer_norm(total, weight.shape, weight.to(x.dtype), _cast(bias, x.dtype), eps)
    return y if residual is None else (y, total)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)

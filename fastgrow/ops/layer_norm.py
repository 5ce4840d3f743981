"""Layer normalisation, with the residual addition before it where there is one.

s = x + residual
y = (s − mean(s)) / √(var(s) + eps) · weight + bias      over the last axis, biased variance
"""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops import _norm_triton
from fastgrow.ops._check import check_float, describe, refuse
from fastgrow.ops._dispatch import Operation, Verdict


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-5,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis.

    Args:
        x: [..., d] float.
        weight: [d], optional.
        bias: [d], optional.
        residual: the shape of `x`, optional; added first. Dtypes may differ.
        eps: added to the variance.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) where a residual is given; the shape of `x` and dtype of
        the sum, but y is float32 where autocast is on for a GPU, as torch's is.

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together.
    """
    check_norm("layer_norm", x, weight, bias, residual)
    return _OPERATION(x, weight, bias, residual, eps, impl=impl)


def check_norm(
    operation: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    """The checks that both norms share."""
    if x.dim() == 0:
        raise refuse(operation, "x", "of shape [..., d]", describe(x))
    check_float(operation, "x", x)
    features = x.shape[-1:]
    if weight is not None:
        _check_beside(operation, "weight", weight, features, x)
    if bias is not None:
        _check_beside(operation, "bias", bias, features, x)
    if residual is not None:
        _check_beside(operation, "residual", residual, x.shape, x)


def _check_beside(
    operation: str, argument: str, tensor: Tensor, shape: torch.Size, x: Tensor
) -> None:
    check_float(operation, argument, tensor)
    if tensor.shape != shape:
        raise refuse(operation, argument, f"of shape {list(shape)}", describe(tensor))
    if tensor.device != x.device:
        raise refuse(operation, argument, f"on {x.device}", describe(tensor))


def dtype_of_y(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """That of x + residual; float32 under autocast on a GPU, where torch lists norms for it."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        return torch.float32
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.zeros(2, 32, device=device)
    return (x, x[0], x[0], x, 1e-5), {}


_OPERATION = Operation("layer_norm", example=_example)


@_OPERATION.implementation("eager")
def layer_norm_eager(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula, as it stands; statistics of half-precision inputs in float32."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    centred = wide - wide.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    y = y.to(dtype_of_y(x, residual))
    return y if residual is None else (y, total)


@_OPERATION.implementation("vendor")
def layer_norm_vendor(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """torch's fused kernel."""
    dtype = dtype_of_y(x, residual)
    total = x if residual is None else x + residual
    y = F.layer_norm(total, x.shape[-1:], in_dtype(weight, dtype), in_dtype(bias, dtype), eps)
    return y if residual is None else (y, total)


def in_dtype(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """An optional parameter as torch's kernels take it, which is in the dtype of the rest."""
    if parameter is None or parameter.dtype == dtype:
        return parameter
    return parameter.to(dtype)


def _verify(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Verdict:
    return _norm_triton.can_serve(x, residual, weight, bias)


def _pays(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Verdict:
    return _norm_triton.pays(x, residual, weight, bias)


@_OPERATION.implementation("triton", verify=_verify, pays=_pays)
def layer_norm_triton(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernels of fastgrow.kernels.norm."""
    dtype = dtype_of_y(x, residual)
    return _norm_triton.norm_triton(x, residual, weight, bias, eps, dtype, centred=True)

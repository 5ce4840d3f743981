"""Layer normalisation and root-mean-square normalisation, with an optional residual addition.

    s          = x + residual
    layer_norm = (s − mean(s)) / √(var(s) + eps) · weight + bias      biased variance
    rms_norm   = s / √(mean(s²) + eps) · weight

All statistics are over the last axis.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core.checks import check_float
from fastgrow.ops.core.dispatch import Implementation, Operation, triton_kernels
from fastgrow.ops.norms import aten, reference, triton


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
    """Apply layer normalisation over the last axis.

    Args:
        x: [..., d] float.
        weight: [d], optional.
        bias: [d], optional.
        residual: tensor of the shape of `x`, optional; added to `x` first. Its dtype may differ.
        eps: added to the variance.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) if a residual is given; of the shape of `x` and the dtype of the
        sum, except that y is float32 under autocast on a GPU, as in torch.

    Raises:
        ArgumentError: shapes, dtypes or devices do not match.
    """
    return _norm(_LAYER_NORM, x, residual, weight, bias, eps, True, impl)


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-6,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply root-mean-square normalisation over the last axis.

    Args:
        x: [..., d] float.
        weight: [d], optional.
        residual: tensor of the shape of `x`, optional; added to `x` first. Its dtype may differ.
        eps: added to the mean square.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) if a residual is given; of the shape of `x` and the dtype of the
        sum, except that y is float32 under autocast on a GPU, as in torch (but not in torch 2.11).

    Raises:
        ArgumentError: shapes, dtypes or devices do not match.
    """
    return _norm(_RMS_NORM, x, residual, weight, None, eps, False, impl)


def _norm(
    operation: Operation,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    impl: str | None,
) -> Any:
    name, shape, dtype = operation.name, x.shape, x.dtype
    if len(shape) == 0:
        raise argument_error(name, "x", "of shape [..., d]", describe(x))
    check_float(name, "x", x)
    if weight is not None:
        _check_operand(name, "weight", weight, shape[-1:], x)
    if bias is not None:
        _check_operand(name, "bias", bias, shape[-1:], x)
    if residual is not None:
        _check_operand(name, "residual", residual, shape, x)
        dtype = torch.promote_types(dtype, residual.dtype)
    # torch's autocast runs norms in float32 on a GPU.
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32
    return operation(NormCall(x, residual, weight, bias, eps, centred, dtype), impl)


def _check_operand(
    operation: str, argument: str, tensor: Tensor, shape: torch.Size, x: Tensor
) -> None:
    check_float(operation, argument, tensor)
    if tensor.shape != shape:
        raise argument_error(operation, argument, f"of shape {list(shape)}", describe(tensor))
    if tensor.device != x.device:
        raise argument_error(operation, argument, f"on {x.device}", describe(tensor))


def _operation(name: str, centred: bool) -> Operation:
    def example(device: torch.device) -> NormCall:
        x = torch.zeros(2, 32, device=device)
        return NormCall(x, x, x[0], x[0] if centred else None, 1e-5, centred, x.dtype)

    implementations = (
        triton_kernels(triton.run, triton.can_serve, triton.pays),
        Implementation("aten", aten.run, alias="vendor"),
        Implementation("eager", reference.run),
    )
    return Operation(name, implementations, example)


_LAYER_NORM = _operation("layer_norm", True)
_RMS_NORM = _operation("rms_norm", False)

"""Both norms with Triton kernels: supported calls, operators, gradients.

Saved for backward are x + residual, which is a result anyway (or x), and one or two float32 numbers
per row; frozen parameters and inputs save nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import in_dtype
from fastgrow.ops.core.registration import differentiable, launched_by, needs_gradient


def can_serve(call: NormCall) -> Answer:
    """Whether the kernels support the dtypes of residual, weight and bias."""
    for tensor in call[1:4]:
        # Only dtypes are compared: all tensors are on the device of x, which was checked before.
        if tensor is not None and tensor.dtype not in dispatch.TRITON_DTYPES:
            return dispatch.triton_can_run(tensor)
    return (True, "") if call.x.shape[-1] > 0 else (False, "rows have no features")


def pays(call: NormCall) -> Answer:
    """True if it moves fewer bytes than torch's kernels: counted, not measured."""
    if call.residual is not None:
        return True, "torch adds the residual in a separate pass"
    if needs_gradient(call.x, call.weight, call.bias):
        return True, "torch reads everything again for the gradients of weight and bias"
    return False, "torch's kernel moves as many bytes"


def run(call: NormCall) -> Tensor | tuple[Tensor, Tensor]:
    """Return y, or y and x + residual."""
    if needs_gradient(call.x, call.residual, call.weight, call.bias):
        result: Tensor | tuple[Tensor, Tensor] = _normalise(*call)
        return result
    y, total = norm_inference(*call)
    return y if call.residual is None else (y, total)


def _y_and_total(call: NormCall) -> tuple[Tensor, Tensor | None]:
    y = call.x.new_empty(call.x.shape, dtype=call.dtype)
    if call.residual is None:
        return y, None
    dtype = torch.promote_types(call.x.dtype, call.residual.dtype)
    return y, call.x.new_empty(call.x.shape, dtype=dtype)


# Functions decorated with `launched_by` only make empty results, for torch.compile; the launchers
# in fastgrow.kernels compute them.
@launched_by("norm.inference")
def norm_inference(call: NormCall) -> tuple[Tensor, Tensor | None]:
    """Return y, and x + residual."""
    return _y_and_total(call)


@launched_by("norm.forward")
def norm_forward(call: NormCall) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Return y, x + residual, and each row's mean and reciprocal standard deviation."""
    # torch.Size.numel would specialise a symbolic size.
    rstd = call.x.new_empty(math.prod(call.x.shape[:-1]), dtype=torch.float32)
    return *_y_and_total(call), torch.empty_like(rstd) if call.centred else None, rstd


@launched_by("norm.backward")
def norm_backward(
    d_y: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    for_input: bool,
    for_weight: bool,
    for_bias: bool,
    parameter_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x + residual, weight and bias."""
    parameter = total.new_empty(total.shape[-1], dtype=parameter_dtype)
    return (
        total.new_empty(total.shape) if for_input else None,
        torch.empty_like(parameter) if for_weight else None,
        torch.empty_like(parameter) if for_bias else None,
    )


def _forward(ctx: Any, call: NormCall) -> Tensor | tuple[Tensor, Tensor]:
    ctx.set_materialize_grads(False)
    x, residual, weight, bias, *_ = call
    needs_x, needs_residual, needs_weight, *_ = ctx.needs_input_grad
    for_input = needs_x or needs_residual
    ctx.dtypes = (
        x.dtype,
        None if residual is None else residual.dtype,
        None if weight is None else weight.dtype,
        None if bias is None else bias.dtype,
    )
    if for_input or needs_weight:
        y, total, mean, rstd = norm_forward(*call)
        ctx.save_for_backward(
            x if residual is None else total,
            mean if call.centred else None,
            rstd,
            weight if for_input else None,
        )
    else:
        y, total = norm_inference(*call)
    if residual is None:
        return y
    if not for_input:
        # Otherwise autograd would compute a gradient for the sum of frozen inputs.
        ctx.mark_non_differentiable(total)
    return y, total


def _backward(
    ctx: Any, d_y: Tensor | None, d_total: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    needs_x, needs_residual, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    of_x, of_residual, of_weight, of_bias = ctx.dtypes
    for_input = needs_x or needs_residual
    dx = d_weight = d_bias = None
    if d_y is None:
        dx = d_total
    elif for_input or needs_weight:
        # If the dtypes differ, the gradients are computed in float32 and then rounded.
        dtypes = {of_weight, of_bias} - {None}
        of_both = dtypes.pop() if len(dtypes) == 1 else torch.float32
        dx, d_weight, d_bias = norm_backward(
            *(d_y, d_total, *ctx.saved_tensors, for_input, needs_weight, needs_bias, of_both)
        )
    else:
        d_bias = d_y.reshape(-1, d_y.shape[-1]).sum(0, dtype=torch.float32)
    return (
        in_dtype(dx, of_x) if needs_x else None,
        in_dtype(dx, of_residual) if needs_residual else None,
        in_dtype(d_weight, of_weight) if needs_weight else None,
        in_dtype(d_bias, of_bias) if needs_bias else None,
    )


_normalise = differentiable("layer_norm and rms_norm", NormCall, _forward, _backward)

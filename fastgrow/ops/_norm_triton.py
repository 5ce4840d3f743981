"""The Triton implementation of `layer_norm` and `rms_norm`: when it serves, ops, gradients.

Kept for backward are x + residual, which is a result anyway (or x), and one or two float32 numbers
a row; nothing for what is frozen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgrow.ops import _triton
from fastgrow.ops._check import refuse
from fastgrow.ops._dispatch import Verdict


def can_serve(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Verdict:
    """The verifier of both norms."""
    ok, reason = _triton.can_run(x)
    if not ok:
        return False, reason
    for tensor in (residual, weight, bias):
        # They are on the same device.
        if tensor is not None and tensor.dtype not in _triton.DTYPES:
            return _triton.can_run(tensor)
    return (True, "") if x.shape[-1] > 0 else (False, "rows have no features")


def pays(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Verdict:
    """Where it moves fewer bytes than torch's kernels: by counting, not measured."""
    ok, reason = _triton.pays_on(x)
    if not ok:
        return False, reason
    if residual is not None:
        return True, "torch adds the residual in a pass of its own"
    if _triton.needs_gradient(x, weight, bias):
        return True, "torch reads everything again for the gradients of weight and bias"
    return False, "torch's kernel moves as many bytes"


def norm_triton(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    *,
    centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernels of fastgrow.kernels.norm; y is of `dtype`."""
    tensors = (x, residual, weight, bias)
    if _triton.needs_gradient(*tensors):
        different = _triton.distinct(tensors)
        result: Tensor | tuple[Tensor, Tensor] = _Norm.apply(*different, eps, centred, dtype)
        return result
    y, total = _ops.norm_inference.default(*tensors, eps, centred, dtype)
    return y if residual is None else (y, total)


_ops = torch.ops.fastgrow
_INPUTS = (
    "Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, bool centred, "
    "ScalarType dtype"
)
_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(f"norm_inference({_INPUTS}) -> (Tensor, Tensor)")
_library.define(f"norm_forward({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    "norm_backward(Tensor d_y, Tensor? d_total, Tensor total, Tensor? mean, Tensor rstd, "
    "Tensor? weight, bool for_input, bool for_weight, bool for_bias, ScalarType parameter_dtype) "
    "-> (Tensor, Tensor, Tensor)"
)


def _inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from fastgrow.kernels.norm import forward

    y, total, _, _ = forward(
        x, residual, weight, bias, eps, centred=centred, dtype=dtype, with_statistics=False
    )
    return y, _or_nothing(total, x)


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastgrow.kernels.norm import forward

    y, total, mean, rstd = forward(
        x, residual, weight, bias, eps, centred=centred, dtype=dtype, with_statistics=True
    )
    assert rstd is not None
    return y, _or_nothing(total, x), _or_nothing(mean, rstd), rstd


def _backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    from fastgrow.kernels.norm import backward

    gradients = backward(
        *(d_y, d_total, total, mean, rstd, weight),
        for_input=for_input,
        for_weight=for_weight,
        for_bias=for_bias,
        parameter_dtype=parameter_dtype,
    )
    dx, d_weight, d_bias = (_or_nothing(gradient, total) for gradient in gradients)
    return dx, d_weight, d_bias


def _or_nothing(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


for _key in ("CPU", "CUDA"):
    _library.impl("norm_inference", _inference, _key)
    _library.impl("norm_forward", _forward, _key)
    _library.impl("norm_backward", _backward, _key)


@torch.library.register_fake("fastgrow::norm_inference", lib=_library)
def _fake_inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=dtype)
    if residual is None:
        return y, x.new_empty(0)
    return y, x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


@torch.library.register_fake("fastgrow::norm_forward", lib=_library)
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, total = _fake_inference(x, *rest)
    *_, centred, _ = rest
    # torch.Size.numel would fix a symbolic size to what it is now.
    rstd = x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)
    return y, total, torch.empty_like(rstd) if centred else rstd.new_empty(0), rstd


@torch.library.register_fake("fastgrow::norm_backward", lib=_library)
def _(
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
) -> tuple[Tensor, Tensor, Tensor]:
    def parameter(wanted: bool) -> Tensor:
        if not wanted:
            return total.new_empty(0)
        return total.new_empty(total.shape[-1], dtype=parameter_dtype)

    dx = total.new_empty(total.shape if for_input else (0,))
    return dx, parameter(for_weight), parameter(for_bias)


class _Norm(torch.autograd.Function):
    """y, or y and x + residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        dtype: torch.dtype,
    ) -> Tensor | tuple[Tensor, Tensor]:
        arguments = (x, residual, weight, bias, eps, centred, dtype)
        ctx.set_materialize_grads(False)
        ctx.dtypes = (
            x.dtype,
            None if residual is None else residual.dtype,
            None if weight is None else weight.dtype,
            None if bias is None else bias.dtype,
        )
        wants_x, wants_residual, wants_weight, *_ = ctx.needs_input_grad
        for_input = wants_x or wants_residual
        if for_input or wants_weight:
            y, total, mean, rstd = _ops.norm_forward.default(*arguments)
            ctx.save_for_backward(
                x if residual is None else total,
                mean if centred else None,
                rstd,
                weight if for_input else None,
            )
        else:
            y, total = _ops.norm_inference.default(*arguments)
        if residual is None:
            result: Tensor = y
            return result
        if not for_input:
            # Else the layers above would find a gradient for what is frozen.
            ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_y, d_total = gradients if len(gradients) == 2 else (gradients[0], None)
        wants_x, wants_residual, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        of_x, of_residual, of_weight, of_bias = ctx.dtypes
        for_input = wants_x or wants_residual
        dx = d_weight = d_bias = None
        if d_y is None:
            dx = d_total
        elif for_input or wants_weight:
            # Only where gradients are to be differentiated is there something to refuse.
            differentiate = (
                _NormBackward.apply if torch.is_grad_enabled() else _ops.norm_backward.default
            )
            dx, d_weight, d_bias = differentiate(
                *(d_y, d_total, *ctx.saved_tensors),
                *(for_input, wants_weight, wants_bias, _wider(of_weight, of_bias)),
            )
        else:
            wide = d_y.reshape(-1, d_y.shape[-1]).sum(0, dtype=torch.float32)
            d_bias = wide.to(of_bias)
        return (
            _rounded(dx, of_x) if wants_x else None,
            _rounded(dx, of_residual) if wants_residual else None,
            _rounded(d_weight, of_weight) if wants_weight else None,
            _rounded(d_bias, of_bias) if wants_bias else None,
            *(None, None, None),
        )


def _rounded(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if gradient is None or gradient.dtype == dtype:
        return gradient
    return gradient.to(dtype)


def _wider(weight: torch.dtype | None, bias: torch.dtype | None) -> torch.dtype:
    """The dtype that both parameters' gradients are rounded to first."""
    if weight is None or bias is None:
        return weight or bias or torch.float32
    if weight == bias:
        return weight
    return torch.promote_types(weight, bias)


class _NormBackward(torch.autograd.Function):
    """The gradients, which refuse to be differentiated rather than pass for constants."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor]
        gradients = _ops.norm_backward.default(*arguments)
        return gradients

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise refuse(
            "layer_norm and rms_norm",
            "impl",
            "eager or vendor where gradients are differentiated",
            "triton",
        )

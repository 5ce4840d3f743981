"""The feed-forward layer and its gradients, from the three steps that implementations differ in.

Kept for backward is what the wanted gradients need:

    x or the first product's parameters    pre (what the activation is of), for SwiGLU also the gate
    up, gate                               x
    down                                   pre, of which the activation is computed again;
                                           the activation itself, where pre is not kept

so a layer whose weights are frozen keeps `pre` alone, and nothing where x needs no gradient either.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastgrow.ops.core.dtypes import has_autocast
from fastgrow.ops.core.registration import refuse_double_backward


class Hidden(Protocol):
    """(activation, pre, gate) of x [N, d]; of pre and gate only what exists, and if `kept`."""

    def __call__(
        self,
        x: Tensor,
        up: Tensor,
        gate: Tensor | None,
        up_bias: Tensor | None,
        activation: str,
        kept: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...


class Output(Protocol):
    """hidden · downᵀ + bias + residual."""

    def __call__(
        self, hidden: Tensor, down: Tensor, down_bias: Tensor | None, residual: Tensor | None
    ) -> Tensor: ...


class HiddenGradient(Protocol):
    """(d_pre, d_gate, activation, column sums of d_pre) of dy [N, d].

    The gate's exists where there is a gate, the last two if asked for, the sums in fp32 or fp64.
    """

    def __call__(
        self,
        dy: Tensor,
        down: Tensor,
        pre: Tensor,
        pre_gate: Tensor | None,
        activation: str,
        with_hidden: bool,
        with_sums: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]: ...


class Steps(NamedTuple):
    """One implementation."""

    hidden: Hidden
    output: Output
    d_hidden: HiddenGradient


IMPLEMENTATIONS: dict[str, Steps] = {}


def run(
    implementation: str,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """The layer on [..., d], by the steps of that name; under autocast as F.linear does."""
    dtype = compute_dtype(x)
    shape = x.shape
    rows = (x[None] if x.dim() == 1 else x.flatten(0, -2)).to(dtype)
    up, down = up.to(dtype), down.to(dtype)
    gate = None if gate is None else gate.to(dtype)
    up_bias = None if up_bias is None else up_bias.to(dtype)
    down_bias = None if down_bias is None else down_bias.to(dtype)
    # It is added in its own precision, as it would be outside of the layer.
    added = None if residual is None else residual.reshape(rows.shape)
    tensors = (rows, up, down, gate, up_bias, down_bias, added)
    y: Tensor
    if needs_gradient(*tensors):
        y = _Layer.apply(implementation, activation, *tensors)
    else:
        steps = IMPLEMENTATIONS[implementation]
        hidden, _, _ = steps.hidden(rows, up, gate, up_bias, activation, False)
        y = steps.output(hidden, down, down_bias, added)
    return y.view(shape)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products."""
    kind = x.device.type
    if has_autocast(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Will autograd ask for the gradient of any of them?"""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        activation: str,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        gate: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        _, _, for_x, for_up, for_down, for_gate, for_up_bias, _, _ = ctx.needs_input_grad
        inner = for_x or for_up or for_gate or for_up_bias
        steps = IMPLEMENTATIONS[implementation]
        hidden, pre, pre_gate = steps.hidden(x, up, gate, up_bias, activation, inner)
        y = steps.output(hidden, down, down_bias, residual)
        ctx.implementation, ctx.activation = implementation, activation
        ctx.dtype = x.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.save_for_backward(
            x if for_up or for_gate else None,
            up if for_x else None,
            gate if for_x else None,
            down if inner else None,
            pre,
            pre_gate,
            hidden if for_down and not inner else None,
        )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("mlp")
        (dy,) = gradients
        _, _, for_x, for_up, for_down, for_gate, for_up_bias, for_down_bias, for_residual = (
            ctx.needs_input_grad
        )
        x, up, gate, down, pre, pre_gate, hidden = ctx.saved_tensors
        dx = d_up = d_down = d_gate = d_up_bias = d_down_bias = d_residual = None
        if for_residual:
            d_residual = dy.to(ctx.residual_dtype)
        dy = dy.to(ctx.dtype)
        if for_down_bias:
            wide = torch.promote_types(ctx.dtype, torch.float32)
            d_down_bias = dy.sum(0, dtype=wide).to(ctx.dtype)
        if pre is not None:
            steps = IMPLEMENTATIONS[ctx.implementation]
            d_pre, d_pre_gate, hidden, sums = steps.d_hidden(
                dy, down, pre, pre_gate, ctx.activation, for_down, for_up_bias
            )
            if for_up_bias:
                assert sums is not None
                d_up_bias = sums.to(ctx.dtype)
            if for_x:
                dx = d_pre @ up
                if d_pre_gate is not None:
                    dx.addmm_(d_pre_gate, gate)
            if for_up:
                d_up = d_pre.mT @ x
            if for_gate:
                assert d_pre_gate is not None
                d_gate = d_pre_gate.mT @ x
        if for_down:
            assert hidden is not None
            d_down = dy.mT @ hidden
        return None, None, dx, d_up, d_down, d_gate, d_up_bias, d_down_bias, d_residual

"""The feed-forward layer and its gradients, from three steps that implementations provide.

Only tensors that the needed gradients depend on are saved for the backward pass:

    gradient of                            saved
    x or the first product's parameters    pre (input of the activation), for SwiGLU also the gate
    up, gate                               x
    down                                   pre, from which the activation is recomputed;
                                           the activation itself, if pre is not saved

A layer whose weights are frozen therefore saves only `pre`, and nothing if x needs no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastgrow.kernels.calls import MlpCall
from fastgrow.ops.core.dtypes import compute_dtype, in_dtype, wide_dtype
from fastgrow.ops.core.registration import differentiable, needs_gradient


class Steps(NamedTuple):
    """The steps of one implementation. Results that are not requested may be None or empty.

    Args:
        hidden: takes the fields of MlpHidden; returns (activation, pre, gate), the last two only
            if `kept`.
        output: takes the fields of MlpOutput; returns hidden · downᵀ + bias + residual.
        d_hidden: takes the fields of MlpHiddenGradient; returns (d_pre, d_gate, activation, column
            sums of d_pre), the last two only if requested, the sums in fp32 or fp64.
    """

    hidden: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
    output: Callable[..., Tensor]
    d_hidden: Callable[..., tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]]


def layer_of(steps: Steps) -> Callable[[MlpCall], Tensor]:
    """Return the layer on x [..., d] with these steps; under autocast with F.linear's dtype."""
    trained = differentiable(
        "mlp", MlpCall, functools.partial(_forward, steps), functools.partial(_backward, steps)
    )

    def run(call: MlpCall) -> Tensor:
        x, up, down, gate, up_bias, down_bias, activation, residual = call
        dtype = compute_dtype(x)
        rows = in_dtype(x[None] if x.dim() == 1 else x.flatten(0, -2), dtype)
        up, down, gate = in_dtype(up, dtype), in_dtype(down, dtype), in_dtype(gate, dtype)
        up_bias, down_bias = in_dtype(up_bias, dtype), in_dtype(down_bias, dtype)
        # The residual is added in its own precision, as it would be outside of the layer.
        added = None if residual is None else residual.reshape(rows.shape)
        if needs_gradient(x, up, down, gate, up_bias, down_bias, residual):
            y = trained(rows, up, down, gate, up_bias, down_bias, activation, added)
        else:
            hidden, *_ = steps.hidden(rows, up, gate, up_bias, activation, False)
            y = steps.output(hidden, down, down_bias, added)
        return y.view(x.shape)

    return run


def _forward(steps: Steps, ctx: Any, call: MlpCall) -> Tensor:
    x, up, down, gate, up_bias, down_bias, activation, residual = call
    for_x, for_up, for_down, for_gate, for_up_bias, *_ = ctx.needs_input_grad
    inner = for_x or for_up or for_gate or for_up_bias
    hidden, pre, pre_gate = steps.hidden(x, up, gate, up_bias, activation, inner)
    ctx.activation, ctx.dtype = activation, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.save_for_backward(
        x if for_up or for_gate else None,
        up if for_x else None,
        gate if for_x else None,
        down if inner else None,
        pre if inner else None,
        pre_gate if inner and gate is not None else None,
        hidden if for_down and not inner else None,
    )
    return steps.output(hidden, down, down_bias, residual)


def _backward(steps: Steps, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    for_x, for_up, for_down, for_gate, for_up_bias, for_down_bias, _, for_residual = (
        ctx.needs_input_grad
    )
    x, up, gate, down, pre, pre_gate, hidden = ctx.saved_tensors
    dx = d_up = d_gate = d_up_bias = d_down_bias = None
    d_residual = in_dtype(dy, ctx.residual_dtype) if for_residual else None
    dy = in_dtype(dy, ctx.dtype)
    if for_down_bias:
        d_down_bias = dy.sum(0, dtype=wide_dtype(ctx.dtype)).to(ctx.dtype)
    if pre is not None:
        d_pre, d_pre_gate, hidden, sums = steps.d_hidden(
            dy, down, pre, pre_gate, ctx.activation, for_down, for_up_bias
        )
        d_up_bias = in_dtype(sums, ctx.dtype) if for_up_bias else None
        d_up = d_pre.mT @ x if for_up else None
        dx = d_pre @ up if for_x else None
        if pre_gate is not None:
            assert d_pre_gate is not None
            d_gate = d_pre_gate.mT @ x if for_gate else None
            dx = None if dx is None else dx.addmm_(d_pre_gate, gate)
    d_down = dy.mT @ hidden if for_down else None
    return dx, d_up, d_down, d_gate, d_up_bias, d_down_bias, None, d_residual

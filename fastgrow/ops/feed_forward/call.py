"""The feed-forward layer (MLP).

    y = f(x · upᵀ + up_bias) · downᵀ + down_bias (+ residual)

where f is GELU (exact, or its tanh form) or ReLU²; or, for SwiGLU,

    y = (silu(x · gateᵀ) ∘ (x · upᵀ + up_bias)) · downᵀ + down_bias (+ residual)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError, argument_error, describe
from fastgrow.kernels.calls import MlpCall
from fastgrow.ops.core.checks import check_float, check_like
from fastgrow.ops.core.dispatch import Implementation, Operation, triton_kernels
from fastgrow.ops.feed_forward import blas, reference, triton

ACTIVATIONS = ("gelu", "gelu_tanh", "relu2", "swiglu")


def mlp(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str = "gelu",
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Apply a feed-forward layer: two linear layers with an activation between them.

    Args:
        x: [..., d] float.
        up: [m, d].
        down: [d, m].
        gate: [m, d], required for `swiglu` and not allowed for other activations.
        up_bias: [m], optional.
        down_bias: [d], optional.
        activation: `gelu` (exact), `gelu_tanh`, `relu2` or `swiglu`.
        residual: tensor of the shape of `x`, optional; added to the result.
        impl: force an implementation.

    Returns:
        [..., d].

    Raises:
        ArgumentError: the activation is unknown, or shapes, dtypes or devices do not match.
    """
    if activation not in ACTIVATIONS:
        raise argument_error(
            "mlp", "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation)
        )
    if (gate is not None) != (activation == "swiglu"):
        needs = "requires a gate" if gate is None else "has no gate"
        raise ArgumentError(f"mlp: the activation {activation} {needs}")
    check_float("mlp", "x", x)
    if x.dim() == 0:
        raise argument_error("mlp", "x", "of shape [..., d]", describe(x))
    width = x.shape[-1]
    if up.dim() != 2 or up.shape[1] != width:
        raise argument_error("mlp", "up", f"of shape [m, {width}]", describe(up))
    hidden = up.shape[0]
    check_like("mlp", "up", up, (hidden, width), x)
    check_like("mlp", "down", down, (width, hidden), up)
    check_like("mlp", "gate", gate, (hidden, width), up)
    check_like("mlp", "up_bias", up_bias, (hidden,), up)
    check_like("mlp", "down_bias", down_bias, (width,), up)
    check_like("mlp", "residual", residual, tuple(x.shape), x)
    call = MlpCall(x, up, down, gate, up_bias, down_bias, activation, residual)
    return _OPERATION(call, impl)


def _example(device: torch.device) -> MlpCall:
    x, up = torch.zeros(2, 32, device=device), torch.zeros(128, 32, device=device)
    return MlpCall(x, up, up.T, None, None, None, "gelu", None)


_IMPLEMENTATIONS = (
    triton_kernels(triton.run, pays=triton.pays),
    Implementation("blas", blas.run, pays=blas.pays, alias="vendor"),
    Implementation("eager", reference.run),
)
_OPERATION = Operation("mlp", _IMPLEMENTATIONS, _example)

"""The feed-forward layer.

    y = f(x · upᵀ + up_bias) · downᵀ + down_bias (+ residual)

with f one of GELU (exact, or its tanh form) and ReLU²; or, for SwiGLU,

    y = (silu(x · gateᵀ) ∘ (x · upᵀ + up_bias)) · downᵀ + down_bias (+ residual)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops import _mlp_triton, _mlp_vendor
from fastgrow.ops.core.checks import check_float, check_like
from fastgrow.ops.core.legacy import Operation

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
    """Two products with an activation between them.

    Args:
        x: [..., d] float.
        up: [m, d].
        down: [d, m].
        gate: [m, d], for `swiglu` alone.
        up_bias: [m], optional.
        down_bias: [d], optional.
        activation: `gelu` (exact), `gelu_tanh`, `relu2` or `swiglu`.
        residual: the shape of `x`, optional; added to the result.
        impl: force an implementation.

    Returns:
        [..., d].

    Raises:
        ArgumentError: the activation is unknown, or shapes, dtypes or devices do not go together.
    """
    if activation not in ACTIVATIONS:
        raise argument_error(
            "mlp", "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation)
        )
    if (gate is not None) != (activation == "swiglu"):
        expected = "given for swiglu" if gate is None else f"None for {activation}"
        raise argument_error("mlp", "gate", expected, "None" if gate is None else describe(gate))
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
    return _OPERATION(x, up, down, gate, up_bias, down_bias, activation, residual, impl=impl)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, up = torch.zeros(2, 32, device=device), torch.zeros(128, 32, device=device)
    return (x, up, up.T, None, None, None, "gelu", None), {}


_OPERATION = Operation("mlp", example=_example)


def activate(hidden: Tensor, activation: str, gate: Tensor | None = None) -> Tensor:
    """f of the widened input [..., m], and for `swiglu` of the gate's product [..., m]."""
    if activation == "gelu":
        return F.gelu(hidden)
    if activation == "gelu_tanh":
        return F.gelu(hidden, approximate="tanh")
    if activation == "relu2":
        return F.relu(hidden).square()
    assert gate is not None
    return F.silu(gate) * hidden


@_OPERATION.implementation("eager")
def mlp_eager(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """The formula, as it stands."""
    hidden = F.linear(x, up, up_bias)
    hidden = activate(hidden, activation, None if gate is None else F.linear(x, gate))
    y = F.linear(hidden, down, down_bias)
    return y if residual is None else y + residual


_OPERATION.implementation("vendor", pays=_mlp_vendor.pays)(_mlp_vendor.mlp_vendor)
_OPERATION.implementation("triton", verify=_mlp_triton.can_serve, pays=_mlp_triton.pays)(
    _mlp_triton.mlp_triton
)

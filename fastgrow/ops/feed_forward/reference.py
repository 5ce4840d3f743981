"""The feed-forward layer in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import MlpCall

APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def run(call: MlpCall) -> Tensor:
    """Return y."""
    gate = None if call.gate is None else F.linear(call.x, call.gate)
    hidden = activate(F.linear(call.x, call.up, call.up_bias), call.activation, gate)
    y = F.linear(hidden, call.down, call.down_bias)
    return y if call.residual is None else y + call.residual


def activate(hidden: Tensor, activation: str, gate: Tensor | None = None) -> Tensor:
    """Apply the activation to x · upᵀ [..., m]; `gate` is x · gateᵀ [..., m] for `swiglu`."""
    if gate is not None:
        return F.silu(gate) * hidden
    if activation == "relu2":
        return F.relu(hidden).square()
    return F.gelu(hidden, approximate=APPROXIMATION[activation])

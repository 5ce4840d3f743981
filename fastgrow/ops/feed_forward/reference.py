"""The formula of the feed-forward layer, as it stands."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import MlpCall

APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def run(call: MlpCall) -> Tensor:
    """Plain PyTorch."""
    gate = None if call.gate is None else F.linear(call.x, call.gate)
    hidden = activate(F.linear(call.x, call.up, call.up_bias), call.activation, gate)
    y = F.linear(hidden, call.down, call.down_bias)
    return y if call.residual is None else y + call.residual


def activate(hidden: Tensor, activation: str, gate: Tensor | None = None) -> Tensor:
    """f of the widened input [..., m], and for `swiglu` of the gate's product [..., m]."""
    if gate is not None:
        return F.silu(gate) * hidden
    if activation == "relu2":
        return F.relu(hidden).square()
    return F.gelu(hidden, approximate=APPROXIMATION[activation])

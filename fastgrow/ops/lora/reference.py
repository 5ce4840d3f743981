"""The formula of the layer with a low-rank correction, as it stands."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import LoraCall


def run(call: LoraCall) -> Tensor:
    """Plain PyTorch."""
    u = F.linear(call.x, call.a.to(call.x.dtype))
    y = F.linear(call.x, call.weight, call.bias)
    return y + call.scale * F.linear(u, call.b.to(u.dtype))

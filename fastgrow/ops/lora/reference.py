"""The layer with a low-rank correction in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import LoraCall


def run(call: LoraCall) -> Tensor:
    """Return y."""
    u = F.linear(call.x, call.a.to(call.x.dtype))
    low_rank = F.linear(u, call.b.to(u.dtype))
    return F.linear(call.x, call.weight, call.bias) + call.scale * low_rank

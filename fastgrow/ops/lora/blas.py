"""The library's matrix products; the last one is scaled and added to the first in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import LoraCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import needs_gradient


def can_serve(call: LoraCall) -> Answer:
    """Whether weight and bias need no gradient."""
    if needs_gradient(call.weight, call.bias):
        return False, "weight or bias requires a gradient, which only eager supports"
    return True, ""


def run(call: LoraCall) -> Tensor:
    """Return y; autograd saves only the tensors that fastgrow.ops.lora.call documents."""
    x, weight, a, b, bias, scale = call
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    u = F.linear(rows, a.to(x.dtype))
    y = F.linear(rows, weight, bias)
    y.addmm_(u, b.to(u.dtype).T, alpha=scale)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])

"""The library's products; the last one adds to the first in place, scaled on the way."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import LoraCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import needs_gradient


def can_serve(call: LoraCall) -> Answer:
    """Whether the layer under the low-rank part asks for no gradient."""
    if needs_gradient(call.weight, call.bias):
        return False, "weight or bias requires a gradient, which eager alone gives"
    return True, ""


def run(call: LoraCall) -> Tensor:
    """Of frozen tensors and of its own products autograd keeps no more than is promised."""
    x, weight, a, b, bias, scale = call
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    u = F.linear(rows, a.to(x.dtype))
    y = F.linear(rows, weight, bias)
    y.addmm_(u, b.to(u.dtype).T, alpha=scale)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])

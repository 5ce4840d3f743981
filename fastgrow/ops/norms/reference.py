"""Both norms in plain PyTorch; statistics of half-precision inputs are in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core.dtypes import widened


def run(call: NormCall) -> Tensor | tuple[Tensor, Tensor]:
    """Return y, or y and x + residual."""
    total = call.x if call.residual is None else call.x + call.residual
    wide = widened(total)
    if call.centred:
        wide = wide - wide.mean(-1, keepdim=True)
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + call.eps)
    y = y if call.weight is None else y * call.weight
    y = y if call.bias is None else y + call.bias
    y = y.to(call.dtype)
    return y if call.residual is None else (y, total)

"""torch's own kernels of both norms; on a CPU that of `rms_norm` with a faster gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core.dtypes import in_dtype
from fastgrow.ops.norms import rms_norm_cpu


def run(call: NormCall) -> Tensor | tuple[Tensor, Tensor]:
    """y, or y and x + residual."""
    total = call.x if call.residual is None else call.x + call.residual
    # torch's kernels want parameters in the dtype of the rest.
    weight, bias = in_dtype(call.weight, call.dtype), in_dtype(call.bias, call.dtype)
    if call.centred:
        y = F.layer_norm(total, total.shape[-1:], weight, bias, call.eps)
    elif weight is not None and rms_norm_cpu.serves(total, weight):
        y = rms_norm_cpu.rms_norm(total, weight, call.eps)
    else:
        # Autocast of torch 2.11 does not widen it.
        y = F.rms_norm(total.to(call.dtype), total.shape[-1:], weight, call.eps)
    return y if call.residual is None else (y, total)

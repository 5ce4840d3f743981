"""torch's kernels of both norms, and a faster RMSNorm on a CPU.

On a CPU, torch's RMSNorm and its gradient are chains of elementwise operations. Here the formula is
computed in place, and its gradient by the kernel of LayerNorm's gradient: with a mean of 0 its
result differs from RMSNorm's by one term per row, which is added back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core.dtypes import in_dtype


def run(call: NormCall) -> Tensor | tuple[Tensor, Tensor]:
    """Return y, or y and x + residual."""
    x, residual, weight, bias, eps, centred, dtype = call
    total = x if residual is None else x + residual
    # torch's kernels require parameters in the dtype of the input.
    weight, bias = in_dtype(weight, dtype), in_dtype(bias, dtype)
    if centred:
        y = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    elif weight is not None and _has_faster_gradient(total, weight):
        y = _rms_norm_on_cpu(total, weight, eps)
    else:
        # Autocast of torch 2.11 does not convert the input to float32.
        y = F.rms_norm(total.to(dtype), total.shape[-1:], weight, eps)
    return y if residual is None else (y, total)


def _has_faster_gradient(total: Tensor, weight: Tensor) -> bool:
    """Whether input and weight are on a CPU, both in fp32 or both in fp64."""
    if total.device.type != "cpu" or total.numel() == 0:
        return False
    if total.dtype not in (torch.float32, torch.float64) or weight.dtype != total.dtype:
        return False
    # torch.compile fuses torch's chain, and the transforms of torch.func need it.
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def _rms_norm_on_cpu(total: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return y of total [..., d] and weight [d], bitwise as `torch.nn.functional.rms_norm`."""
    if torch.is_grad_enabled() and (total.requires_grad or weight.requires_grad):
        y: Tensor = _RMSNorm.apply(total, weight, eps)
        return y
    return _forward(total, weight, eps)[0]


def _forward(total: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = total.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (total * rstd).mul_(weight), rstd


class _RMSNorm(torch.autograd.Function):
    """Saves total, weight and one number per row."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = _forward(total, weight, eps)
        ctx.save_for_backward(total, weight, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        total, weight, rstd = ctx.saved_tensors
        for_total, for_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Double backward: rstd was computed without a graph, so y is recomputed.
            inputs = [t for t, n in ((total, for_total), (weight, for_weight)) if n]
            y = F.rms_norm(total, weight.shape, weight, ctx.eps)
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return next(found) if for_total else None, next(found) if for_weight else None, None
        d_total, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
            dy, total, weight.shape, torch.zeros_like(rstd), rstd, weight, None,
            [for_total, for_weight, False],
        )  # fmt: skip
        if for_total:
            mean = torch.mv(dy.reshape(-1, weight.shape[0]), weight / weight.shape[0])
            d_total.addcmul_(mean.view(rstd.shape), rstd)
        return d_total, d_weight, None

"""Helper functions of the patched modules and of the layers for `kernels`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops


def cast_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute RMS norm as Llama does: round to the input's dtype, then multiply by the weight.

    If the weight has the dtype of the input, `ops.rms_norm` is called, which rounds once instead of
    twice. Otherwise (e.g. norms kept in float32 in a half-precision model) the result has the wider
    of the two dtypes.

    Args:
        x: input, [..., d].
        weight: weight, [d].
        eps: added to the mean square.
    """
    if weight.dtype == x.dtype:
        return ops.rms_norm(x, weight, eps=eps)
    return weight * ops.rms_norm(x, torch.ones_like(weight, dtype=x.dtype), eps=eps)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is exactly of class `kind`, without hooks and without a replaced forward.

    Only then can an operation use the layer's weight or compute its function without calling the
    layer: adapters, quantized layers, hooks and a replaced forward would otherwise have no effect.
    """
    return type(layer) is kind and not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )

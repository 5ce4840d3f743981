"""What patched modules and pure layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops


def cast_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm whose weight multiplies what has been rounded to the input's dtype.

    With a weight of that dtype too, `ops.rms_norm` rounds once where this is defined to round
    twice. With another (norms kept in float32 under half-precision layers) the result has the
    wider dtype of the two.

    Args:
        x: [..., d].
        weight: [d].
        eps: added to the mean square.
    """
    if weight.dtype == x.dtype:
        return ops.rms_norm(x, weight, eps=eps)
    return weight * ops.rms_norm(x, torch.ones_like(weight, dtype=x.dtype), eps=eps)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is no more than its class makes it.

    An adapter or a quantised layer in its place, a hook or a forward of its own would be passed by
    if its weight were read, or its function computed, and the layer not called.
    """
    return type(layer) is kind and not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )

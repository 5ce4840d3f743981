"""A frozen linear layer with a trainable low-rank correction (LoRA, arXiv 2106.09685, §4.1).

    u = x · aᵀ
    y = x · weightᵀ + bias + scale · u · bᵀ

`weight` and `bias` are frozen: only x and u [..., r] are saved for the backward pass, and

    dx = dy · weight + scale · (dy · b) · a
    da = scale · (dy · b)ᵀ · x
    db = scale · dyᵀ · u

Dropout of the low-rank part's input is not included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.kernels.calls import LoraCall
from fastgrow.ops.core.checks import check_float, check_like
from fastgrow.ops.core.dispatch import Implementation, Operation, triton_kernels
from fastgrow.ops.lora import blas, reference, triton

NAME = "lora_linear"


def lora_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    impl: str | None = None,
) -> Tensor:
    """Apply a linear layer plus a low-rank correction, with gradients of x, a and b.

    Products are computed in the dtype of `x`. `a` and `b` may be float32 with half-precision
    weights; their gradients have their dtype.

    Args:
        x: [..., in] float.
        weight: [out, in], dtype of `x`; frozen. If `weight` or `bias` requires a gradient, the
            automatic choice is `eager`, which computes it; forcing another implementation raises
            an error.
        a: [r, in], dtype of `x` or float32.
        b: [out, r], dtype of `a`.
        bias: [out], optional, dtype of `weight`; frozen.
        scale: factor of the low-rank part, α / r in the paper.
        impl: force an implementation.

    Returns:
        [..., out], dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not match.
    """
    if x.dim() == 0:
        raise argument_error(NAME, "x", "of shape [..., in]", describe(x))
    check_float(NAME, "x", x)
    width = x.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width:
        raise argument_error(NAME, "weight", f"of shape [out, {width}]", describe(weight))
    check_like(NAME, "weight", weight, tuple(weight.shape), x)
    check_like(NAME, "bias", bias, (weight.shape[0],), weight)
    if a.dim() != 2 or a.shape[1] != width or a.shape[0] < 1:
        raise argument_error(NAME, "a", f"of shape [at least 1, {width}]", describe(a))
    if a.device != x.device:
        raise argument_error(NAME, "a", f"on {x.device}", describe(a))
    if a.dtype not in (x.dtype, torch.float32) and not torch.is_autocast_enabled(x.device.type):
        raise argument_error(NAME, "a", f"of dtype {x.dtype} or torch.float32", describe(a))
    if b.dtype != a.dtype:
        raise argument_error(NAME, "b", f"of dtype {a.dtype} like a", describe(b))
    check_like(NAME, "b", b, (weight.shape[0], a.shape[0]), a)
    return _OPERATION(LoraCall(x, weight, a, b, bias, scale), impl)


def _example(device: torch.device) -> LoraCall:
    x, a = torch.zeros(2, 32, device=device), torch.zeros(4, 32, device=device)
    return LoraCall(x, torch.zeros(64, 32, device=device), a, a.new_zeros(64, 4), None, 1.0)


_IMPLEMENTATIONS = (
    triton_kernels(triton.run, blas.can_serve, triton.pays),
    Implementation("blas", blas.run, blas.can_serve, alias="vendor"),
    Implementation("eager", reference.run),
)
_OPERATION = Operation(NAME, _IMPLEMENTATIONS, _example)

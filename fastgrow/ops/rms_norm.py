"""Root-mean-square normalisation, with the residual addition before it where there is one.

s = x + residual
y = s / √(mean(s²) + eps) · weight      over the last axis
"""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops._dispatch import Operation
from fastgrow.ops.layer_norm import check_norm


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor,
    eps: float = 1e-6,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis by its root mean square.

    Args:
        x: [..., d] float.
        weight: [d].
        residual: the shape of `x`, optional; added first.
        eps: added to the mean square.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) where a residual is given; shape and dtype of `x`.

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together.
    """
    check_norm("rms_norm", x, weight, None, residual)
    return _OPERATION(x, weight, residual, eps, impl=impl)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.zeros(2, 32, device=device)
    return (x, x[0], None, 1e-6), {}


_OPERATION = Operation("rms_norm", example=_example)


@_OPERATION.implementation("eager")
def rms_norm_eager(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula, as it stands; statistics of half-precision inputs in float32."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    y = y.to(x.dtype)
    return y if residual is None else (y, total)


@_OPERATION.implementation("vendor")
def rms_norm_vendor(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """torch's own."""
    total = x if residual is None else x + residual
    y = F.rms_norm(total, weight.shape, weight.to(x.dtype), eps)
    return y if residual is None else (y, total)

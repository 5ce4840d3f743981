"""Root-mean-square normalisation, with the residual addition before it where there is one.

s = x + residual
y = s / √(mean(s²) + eps) · weight      over the last axis
"""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops import _norm_triton, _rms_norm_cpu
from fastgrow.ops._dispatch import Operation, Verdict
from fastgrow.ops.layer_norm import check_norm, dtype_of_y, in_dtype


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-6,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis by its root mean square.

    Args:
        x: [..., d] float.
        weight: [d], optional.
        residual: the shape of `x`, optional; added first. Dtypes may differ.
        eps: added to the mean square.
        impl: force an implementation.

    Returns:
        y, or (y, x + residual) where a residual is given; the shape of `x` and dtype of
        the sum, but y is float32 where autocast is on for a GPU, as torch's is (not yet in
        torch 2.11).

    Raises:
        ArgumentError: shapes, dtypes or devices do not go together.
    """
    check_norm("rms_norm", x, weight, None, residual)
    return _OPERATION(x, weight, residual, eps, impl=impl)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.zeros(2, 32, device=device)
    return (x, x[0], x, 1e-6), {}


_OPERATION = Operation("rms_norm", example=_example)


@_OPERATION.implementation("eager")
def rms_norm_eager(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula, as it stands; statistics of half-precision inputs in float32."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (y if weight is None else y * weight).to(dtype_of_y(x, residual))
    return y if residual is None else (y, total)


@_OPERATION.implementation("vendor")
def rms_norm_vendor(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """torch's own; on a CPU the same formula with a faster gradient."""
    dtype = dtype_of_y(x, residual)
    total = x if residual is None else x + residual
    weight = in_dtype(weight, dtype)
    if weight is not None and _rms_norm_cpu.serves(total, weight):
        y = _rms_norm_cpu.rms_norm(total, weight, eps)
    else:
        # Autocast of torch 2.11 does not widen it.
        y = F.rms_norm(total.to(dtype), x.shape[-1:], weight, eps)
    return y if residual is None else (y, total)


def _verify(x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float) -> Verdict:
    return _norm_triton.can_serve(x, residual, weight, None)


def _pays(x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float) -> Verdict:
    return _norm_triton.pays(x, residual, weight, None)


@_OPERATION.implementation("triton", verify=_verify, pays=_pays)
def rms_norm_triton(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernels of fastgrow.kernels.norm."""
    dtype = dtype_of_y(x, residual)
    return _norm_triton.norm_triton(x, residual, weight, None, eps, dtype, centred=False)

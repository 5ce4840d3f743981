"""The dtypes of operations' arguments, computations and results."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to accumulate `dtype` numbers in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """Return `x` in its accumulation dtype, `wide_dtype`."""
    return x if x.dtype == torch.float64 else x.float()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `x`: autocast's if it is on and x is not float64."""
    kind = x.device.type
    if has_autocast(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


@torch.compiler.assume_constant_result
def has_autocast(kind: str) -> bool:
    """Whether devices of this type support autocast; querying its state raises for `meta`.

    Dynamo cannot trace this query before torch 2.12; the result is constant.
    """
    return torch.amp.is_autocast_available(kind)


def in_dtype(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    """Convert an optional tensor to a dtype; faster than `to` if it already has this dtype."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)

"""The dtypes that operations take, compute in and give."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of `dtype` numbers run in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype that its sums run in."""
    return x if x.dtype == torch.float64 else x.float()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with `x`: autocast's where it is on, which leaves float64 alone."""
    kind = x.device.type
    if has_autocast(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


@torch.compiler.assume_constant_result
def has_autocast(kind: str) -> bool:
    """Whether devices of this type know autocast; asking a `meta` device for its state raises.

    Dynamo cannot trace the question before torch 2.12, and the answer never changes.
    """
    return torch.amp.is_autocast_available(kind)


def in_dtype(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    """An optional tensor in a dtype; itself where it has it, which `to` takes a while to find."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)

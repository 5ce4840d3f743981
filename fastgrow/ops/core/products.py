"""Sums of products in the precision of their result, by the library's routines."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def accumulate(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total += a · b, or total = a · b for the first of them.

    A float32 total of half-precision products is not rounded to half precision on the way.
    """
    if a.dtype == total.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif a.device.type == "cpu":
        accumulate(total, a.to(total.dtype), b.to(total.dtype), first=first)
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)
    elif _adds_in_float32(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


@functools.cache
def _adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds half-precision products to a float32 matrix in one call."""
    a = torch.zeros(16, 16, dtype=dtype, device=device)
    total = torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True

"""Checks of what integer tensors hold, made only under FASTGROW_DEBUG=1.

Reading a tensor's content waits for its device, so without the variable an operation leaves it
unread: the kernels then clamp what is out of range instead of reading outside their arrays.
"""

from __future__ import annotations

import itertools
import os

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError
from fastgrow.ops._check import refuse

ENVIRONMENT_VARIABLE = "FASTGROW_DEBUG"


def debugging(tensor: Tensor) -> bool:
    """Whether the content of a tensor is to be checked: asked for, and there is content to read."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")


def check_range(
    operation: str,
    argument: str,
    values: Tensor | None,
    first: int,
    limit: int,
    *,
    ignore: int | None = None,
) -> None:
    """Under FASTGROW_DEBUG, refuse values outside [first, limit) that are not `ignore`."""
    if values is None or not debugging(values):
        return
    if bool(_outside(values, first, limit, ignore).any()):
        raise out_of_range(operation, argument, values, limit, ignore, first=first)


def check_cu_seqlens(operation: str, cu_seqlens: Tensor | None, length: int) -> None:
    """Under FASTGROW_DEBUG, refuse boundaries that are not 0 ≤ … ≤ length, in order."""
    if cu_seqlens is None or not debugging(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    name = "cu_seqlens"
    if bounds[0] != 0:
        raise refuse(operation, name, "0 at [0]", bounds[0])
    for index, (before, after) in enumerate(itertools.pairwise(bounds)):
        if after < before:
            got = f"{after} at [{index + 1}] after {before}"
            raise refuse(operation, name, "non-decreasing", got)
    if bounds[-1] != length:
        last = len(bounds) - 1
        raise refuse(
            operation, name, f"{length}, the tokens, at its end", f"{bounds[-1]} at [{last}]"
        )


def out_of_range(
    operation: str,
    argument: str,
    values: Tensor,
    limit: int,
    ignore: int | None = None,
    *,
    first: int = 0,
) -> ArgumentError:
    """The error for the first value outside [first, limit) that is not `ignore`; there is one."""
    where = tuple(_outside(values, first, limit, ignore).nonzero()[0].tolist())
    got = f"{int(values[where])} at {list(where)}"
    return refuse(operation, argument, f"in [{first}, {limit})", got)


def _outside(values: Tensor, first: int, limit: int, ignore: int | None) -> Tensor:
    # A limit that an int32 does not hold would wrap around.
    wide = values.long()
    outside = (wide < first) | (wide >= limit)
    return outside if ignore is None else outside & (values != ignore)

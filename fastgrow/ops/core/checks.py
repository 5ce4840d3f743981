"""Checks that operations make on the host, before any implementation runs.

They read metadata alone, so they cost no synchronisation with a device. What integer tensors hold
is read under FASTGROW_DEBUG=1 only: without it the kernels clamp what is out of range instead of
reading outside their arrays.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError, argument_error, describe
from fastgrow.kernels.calls import RopeCall
from fastgrow.ops.core.dtypes import FLOATS, INTEGERS

ENVIRONMENT_VARIABLE = "FASTGROW_DEBUG"


def check_float(operation: str, argument: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not of a floating-point type."""
    if tensor.dtype not in FLOATS:
        raise argument_error(operation, argument, "a floating-point tensor", describe(tensor))


def check_ids(operation: str, argument: str, tensor: Tensor) -> None:
    """Refuse a tensor of indices that is not int32 or int64."""
    if tensor.dtype not in INTEGERS:
        raise argument_error(operation, argument, "an int64 or int32 tensor", describe(tensor))


def check_targets(operation: str, targets: Tensor, rows: Tensor) -> None:
    """Refuse targets that are not one index for each row of `rows`, [..., anything]."""
    check_ids(operation, "targets", targets)
    shape = rows.shape[:-1]
    if targets.shape != shape or targets.device != rows.device:
        expected = f"of shape {list(shape)} on {rows.device}"
        raise argument_error(operation, "targets", expected, describe(targets))


def check_like(
    operation: str, argument: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor
) -> None:
    """Refuse an optional parameter whose shape or device does not go with `like`.

    Under autocast parameters may stay in float32, so dtypes are compared only outside of it.
    """
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise argument_error(operation, argument, f"of shape {list(shape)}", describe(tensor))
    if tensor.device != like.device:
        raise argument_error(operation, argument, f"on {like.device}", describe(tensor))
    if tensor.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise argument_error(operation, argument, f"of dtype {like.dtype}", describe(tensor))


def check_rope(operation: str, argument: str, call: RopeCall) -> None:
    """The checks of `rope`, also for operations that rotate inside and call x `argument`."""
    x, cos, sin, position_ids, offset, _ = call
    shape, rows = x.shape, cos.shape
    if len(shape) != 4:
        raise argument_error(operation, argument, "of shape [B, H, T, D]", describe(x))
    check_float(operation, argument, x)
    if len(rows) != 2 or rows != sin.shape or 2 * rows[1] > shape[3]:
        expected = f"two tensors [positions, R/2] with R ≤ {shape[3]}"
        got = f"{describe(cos)}, {describe(sin)}"
        raise argument_error(operation, "the rope table", expected, got)
    device = x.device
    if cos.device != device or sin.device != device:
        wrong = sin if cos.device == device else cos
        raise argument_error(operation, "the rope table", f"on {device}", describe(wrong))
    length = shape[2]
    if position_ids is None:
        if offset + length > rows[0]:
            expected = f"of at least {offset + length} positions"
            raise argument_error(operation, "the rope table", expected, describe(cos))
        return
    check_ids(operation, "position_ids", position_ids)
    shapes = ((length,), (1, length), (shape[0], length))
    if tuple(position_ids.shape) not in shapes or position_ids.device != device:
        expected = f"of shape [{length}] or [{shape[0]}, {length}] on {device}"
        raise argument_error(operation, "position_ids", expected, describe(position_ids))
    check_range(operation, "position_ids", position_ids, 0, rows[0])


def debugging(tensor: Tensor) -> bool:
    """Whether the content of a tensor is to be checked: asked for, and there is content to read."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")


def run_in_range(
    run: Callable[[], Any],
    operation: str,
    argument: str,
    values: Tensor,
    limit: int,
    ignore: int | None = None,
) -> Any:
    """Run an operation on indices, with an error that names the first that is out of range.

    On a CPU implementations raise IndexError or RuntimeError where one is neither in [0, limit) nor
    `ignore`. Elsewhere only `check_range` finds it.
    """
    check_range(operation, argument, values, 0, limit, ignore=ignore)
    if torch.compiler.is_compiling():
        return run()
    try:
        return run()
    except (IndexError, RuntimeError):
        # Within a transform of torch.func the question itself would raise.
        is_read = values.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
        if is_read and bool(outside(values, 0, limit, ignore).any()):
            raise _out_of_range(operation, argument, values, 0, limit, ignore) from None
        raise


def check_range(
    operation: str,
    argument: str,
    values: Tensor,
    first: int,
    limit: int,
    *,
    ignore: int | None = None,
) -> None:
    """Under FASTGROW_DEBUG, refuse values outside [first, limit) that are not `ignore`."""
    if debugging(values) and bool(outside(values, first, limit, ignore).any()):
        raise _out_of_range(operation, argument, values, first, limit, ignore)


def check_cu_seqlens(operation: str, cu_seqlens: Tensor, length: int) -> None:
    """Under FASTGROW_DEBUG, refuse boundaries that are not 0 ≤ … ≤ length, in order."""
    if not debugging(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    name = "cu_seqlens"
    if bounds[0] != 0:
        raise argument_error(operation, name, "0 at [0]", bounds[0])
    for index, (before, after) in enumerate(itertools.pairwise(bounds)):
        if after < before:
            got = f"{after} at [{index + 1}] after {before}"
            raise argument_error(operation, name, "non-decreasing", got)
    if bounds[-1] != length:
        last = len(bounds) - 1
        raise argument_error(
            operation, name, f"{length}, the tokens, at its end", f"{bounds[-1]} at [{last}]"
        )


def _out_of_range(
    operation: str, argument: str, values: Tensor, first: int, limit: int, ignore: int | None
) -> ArgumentError:
    """The error for the first value outside [first, limit) that is not `ignore`; there is one."""
    where = tuple(outside(values, first, limit, ignore).nonzero()[0].tolist())
    got = f"{int(values[where])} at {list(where)}"
    return argument_error(operation, argument, f"in [{first}, {limit})", got)


def outside(values: Tensor, first: int, limit: int, ignore: int | None) -> Tensor:
    """Which values are neither in [first, limit) nor `ignore`."""
    # A limit that an int32 does not hold would wrap around.
    wide = values.long()
    wrong = (wide < first) | (wide >= limit)
    return wrong if ignore is None else wrong & (values != ignore)

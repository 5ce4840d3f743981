"""Argument checks that operations make on the host, before any implementation runs.

They read metadata only, so they need no synchronisation with a device. The values of integer
tensors are read only under FASTGROW_DEBUG=1; without it the kernels clamp indices that are out of
range, so that they never read outside their arrays.
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
    """Raise an error if a tensor is not of a floating-point type."""
    if tensor.dtype not in FLOATS:
        raise argument_error(operation, argument, "a floating-point tensor", describe(tensor))


def check_ids(operation: str, argument: str, tensor: Tensor) -> None:
    """Raise an error if a tensor of indices is not int32 or int64."""
    if tensor.dtype not in INTEGERS:
        raise argument_error(operation, argument, "an int64 or int32 tensor", describe(tensor))


def check_targets(operation: str, targets: Tensor, rows: Tensor) -> None:
    """Raise an error unless there is one index for each row of `rows`, [..., anything]."""
    check_ids(operation, "targets", targets)
    shape = rows.shape[:-1]
    if targets.shape != shape or targets.device != rows.device:
        expected = f"of shape {list(shape)} on {rows.device}"
        raise argument_error(operation, "targets", expected, describe(targets))


def check_like(
    operation: str, argument: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor
) -> None:
    """Raise an error if an optional parameter has a wrong shape, or not the device of `like`.

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
    """Check the arguments of `rope`, or of an operation that includes it and names x `argument`."""
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
    """Whether FASTGROW_DEBUG is set and the tensor has values that can be read."""
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
    """Run an operation on indices; an error names the first index that is out of range.

    On a CPU the implementations raise IndexError or RuntimeError if an index is neither in
    [0, limit) nor `ignore`. On other devices only `check_range` finds such an index.
    """
    check_range(operation, argument, values, 0, limit, ignore=ignore)
    if torch.compiler.is_compiling():
        return run()
    try:
        return run()
    except (IndexError, RuntimeError):
        # Within a transform of torch.func reading the values would raise.
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
    """Under FASTGROW_DEBUG, raise an error for values outside [first, limit), except `ignore`."""
    if debugging(values) and bool(outside(values, first, limit, ignore).any()):
        raise _out_of_range(operation, argument, values, first, limit, ignore)


def check_cu_seqlens(operation: str, cu_seqlens: Tensor, length: int) -> None:
    """Under FASTGROW_DEBUG, raise an error unless the bounds ascend from 0 to `length`."""
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
            operation, name, f"{length} (number of tokens) at its end", f"{bounds[-1]} at [{last}]"
        )


def _out_of_range(
    operation: str, argument: str, values: Tensor, first: int, limit: int, ignore: int | None
) -> ArgumentError:
    """Return the error for the first value that is out of range; there must be one."""
    where = tuple(outside(values, first, limit, ignore).nonzero()[0].tolist())
    got = f"{int(values[where])} at {list(where)}"
    return argument_error(operation, argument, f"in [{first}, {limit})", got)


def outside(values: Tensor, first: int, limit: int, ignore: int | None) -> Tensor:
    """Return a bool tensor: the values that are neither in [first, limit) nor `ignore`."""
    # A limit that does not fit into int32 would wrap around.
    wide = values.long()
    wrong = (wide < first) | (wide >= limit)
    return wrong if ignore is None else wrong & (values != ignore)

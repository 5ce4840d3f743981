"""Checks that operations make on the host, before any implementation runs.

They read metadata alone, so they cost no synchronisation with a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def refuse(operation: str, argument: str, expected: str, got: object) -> ArgumentError:
    """The error for an argument an operation cannot take; the caller raises it."""
    return ArgumentError(f"{operation}: {argument} must be {expected}, got {got}")


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for error messages."""
    shape = ", ".join(str(n) for n in tensor.shape)
    return f"[{shape}] {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def check_float(operation: str, argument: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not of a floating-point type."""
    if tensor.dtype not in FLOATS:
        raise refuse(operation, argument, "a floating-point tensor", describe(tensor))


def check_ids(operation: str, argument: str, tensor: Tensor) -> None:
    """Refuse a tensor of indices that is not int32 or int64."""
    if tensor.dtype not in INTEGERS:
        raise refuse(operation, argument, "an int64 or int32 tensor", describe(tensor))


def check_like(
    operation: str, argument: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor
) -> None:
    """Refuse an optional parameter whose shape or device does not go with `like`.

    Under autocast parameters may stay in float32, so dtypes are compared only outside of it.
    """
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise refuse(operation, argument, f"of shape {list(shape)}", describe(tensor))
    if tensor.device != like.device:
        raise refuse(operation, argument, f"on {like.device}", describe(tensor))
    if tensor.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise refuse(operation, argument, f"of dtype {like.dtype}", describe(tensor))


@torch.compiler.assume_constant_result
def has_autocast(kind: str) -> bool:
    """Whether devices of this type know autocast; asking a `meta` device for its state raises.

    Dynamo cannot trace the question before torch 2.12, and the answer never changes.
    """
    return torch.amp.is_autocast_available(kind)


def refuse_double_backward(operation: str) -> None:
    """Called in a backward whose result has no gradient of its own: refuse `create_graph=True`.

    Autograd would take such a result for a constant and give wrong numbers silently.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise ArgumentError(
            f"{operation}: its gradient cannot be differentiated again (create_graph=True); "
            "impl='eager' can"
        )

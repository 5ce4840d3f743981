"""Whether Triton kernels can run on a tensor."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from fastgrow._installed import is_there
from fastgrow.ops.core.dispatch import Answer

INSTALLED = is_there("triton")
# Set before Triton is imported, or not at all: a process has either the interpreter or a compiler.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_run(tensor: Tensor, dtype: torch.dtype | None = None) -> Answer:
    """May a kernel read this tensor, by device and dtype? `dtype` replaces the tensor's."""
    dtype = dtype or tensor.dtype
    device = tensor.device
    kind = device.type
    if not INSTALLED:
        return False, "triton is not installed"
    if kind == "cpu":
        if not INTERPRETED:
            return False, "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
    elif kind != "cuda":
        return False, f"it has no kernel for {kind} tensors"
    # While torch.compile traces it cannot ask.
    elif not (torch.compiler.is_compiling() or is_new_enough(device)):
        return False, "it needs a GPU of compute capability 8.0 or newer"
    if dtype not in DTYPES:
        return False, f"it takes float32, bfloat16 or float16, not {dtype}"
    return True, ""


@functools.cache
def is_new_enough(device: torch.device) -> bool:
    """Of compute capability 8.0; True also for GPUs that are not there. Asking takes a while."""
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def pays_on(tensor: Tensor) -> Answer:
    """The interpreter is slower than any other implementation."""
    if tensor.device.type == "cpu":
        return False, "the interpreter is for tests"
    return True, ""

"""Call the operators of the C++/CUDA extension, which has one library for each kind of device.

Operators that are in both libraries take the same arguments. Those for a GPU take two more, after
the logits and their factors: how the work is split (launch_plan.py), and memory for intermediate
results that one kernel writes and the next one reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.ops.core.launch_plan import Plan, launch_plan

# The device type that uses the operators for a GPU; tests that emulate a GPU replace it.
GPU = "cuda"


def on_gpu(x: Tensor) -> bool:
    """Whether the operators for a GPU are to be used for a tensor."""
    return x.device.type == GPU


def extension_of(x: Tensor) -> _native.Extension:
    """Return the library with the operators for a tensor's device."""
    return _native.CUDA if on_gpu(x) else _native.CPU


def plan_of(operation: str, logits: Tensor) -> Plan:
    """Return how a GPU's work on logits [..., V] is split; see `launch_plan`."""
    rows, columns = logits.shape[:-1].numel(), logits.shape[-1]
    return launch_plan(operation, max(rows, 1), max(columns, 1), logits.element_size())


def run_extension(
    name: str,
    logits: list[Tensor],
    scale: Tensor,
    *others: Any,
    plan: str = "",
    part_bytes: tuple[int, ...] = (),
) -> None:
    """Call an operator of the extension.

    Args:
        name: name of the operator.
        logits, scale, others: its arguments on every device.
        plan: the operation whose launch plan is used on a GPU; empty for the default plan.
        part_bytes: for each temporary buffer on a GPU, the bytes per part of a row.
    """
    # Factors are [K], or [N, K] with the leading dimensions flattened.
    scale = scale if scale.dim() == 1 else scale.reshape(-1, scale.shape[-1]).contiguous()
    first = logits[0]
    if not on_gpu(first):
        getattr(torch.ops.fastgrow_native, name)(logits, scale, *others)
        return
    launch = plan_of(plan, first)
    parts = first.shape[:-1].numel() * launch.parts
    buffers = [first.new_empty(parts * size, dtype=torch.uint8) for size in part_bytes]
    getattr(torch.ops.fastgrow_cuda, name)(logits, scale, list(launch), *buffers, *others)

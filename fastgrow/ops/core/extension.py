"""Calls of the C++/CUDA extension, one library of operators for each kind of device.

Operators that both have take the same arguments. Those for a GPU want two things more, after the
logits and their factors: how the work is cut up (launch_plan.py), and memory for what one kernel
leaves to the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.ops.core.launch_plan import Plan, launch_plan

# The devices that the operators for a GPU are for; tests that emulate one put another here.
GPU = "cuda"


def on_gpu(x: Tensor) -> bool:
    """Whether the operators for a GPU are the ones for a tensor."""
    return x.device.type == GPU


def extension_of(x: Tensor) -> _native.Extension:
    """The library whose operators can take a tensor."""
    return _native.CUDA if on_gpu(x) else _native.CPU


def plan_of(operation: str, logits: Tensor) -> Plan:
    """How a GPU's work on logits [..., V] is cut up; see `launch_plan`."""
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
        name: of the operator.
        logits, scale, others: its arguments on every device.
        plan: an operation whose plan is wanted on a GPU, where it has one of its own.
        part_bytes: of each memory that it wants on a GPU, the bytes for a part of a row.
    """
    # Factors are [K], or [N, K] with the rows counted through.
    scale = scale if scale.dim() == 1 else scale.reshape(-1, scale.shape[-1]).contiguous()
    first = logits[0]
    if not on_gpu(first):
        getattr(torch.ops.fastgrow_native, name)(logits, scale, *others)
        return
    cut = plan_of(plan, first)
    parts = first.shape[:-1].numel() * cut.parts
    memory = [first.new_empty(parts * size, dtype=torch.uint8) for size in part_bytes]
    getattr(torch.ops.fastgrow_cuda, name)(logits, scale, list(cut), *memory, *others)

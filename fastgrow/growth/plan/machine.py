"""What this machine is, and how much memory it has to give."""

from __future__ import annotations

import torch

from fastgrow.growth.trunk.costs import available_memory


def free_memory(device: torch.device) -> int:
    """Bytes that a new process could use on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def describe_machine(device: torch.device, dtype: torch.dtype) -> str:
    """One line for the head of a plan."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    memory = free_memory(device) / 2**30
    return f"{name}, {memory:.1f} GiB free, {str(dtype).removeprefix('torch.')}"

"""Name and free memory of the device."""

from __future__ import annotations

import torch

from fastgrow.growth.trunk.costs import available_memory


def free_memory(device: torch.device) -> int:
    """Return the number of bytes that a new process could use on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def describe_machine(device: torch.device, dtype: torch.dtype) -> str:
    """Describe device, free memory and dtype in one line, for the header of a plan."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    memory = free_memory(device) / 2**30
    return f"{name}, {memory:.1f} GiB free, {str(dtype).removeprefix('torch.')}"

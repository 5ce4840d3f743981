"""What a run was computed by and on: recorded for whoever asks later, and compared with nothing."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

PACKAGES = ("fastgrow", "torch", "numpy")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, as JSON values.

    Args:
        device: that the run computes on.
    """
    on_gpu = device.type == "cuda"
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        # On a CPU, numbers repeat to the bit under one instruction set.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # A tree that is on the path and not installed.
        return None

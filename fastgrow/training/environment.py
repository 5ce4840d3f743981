"""What a run was computed by and on: recorded for whoever asks later, and compared with nothing."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

import fastgrow


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, as JSON values.

    Args:
        device: that the run computes on.
    """
    on_gpu = device.type == "cuda"
    return {
        "fastgrow": fastgrow.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "threads": torch.get_num_threads(),
    }

"""What a run was computed by and on: recorded for whoever asks later, and compared with nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

from fastgrow._cpu import cpu_model

# They have a library take other instructions than the processor's best, which add in another order.
CHOOSING = (
    "ATEN_CPU_CAPABILITY",
    "FASTGROW_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, and what chooses the order of sums on a CPU, as JSON values.

    On a CPU a run repeats to the bit where all of it is the same.

    Args:
        device: that the run computes on.
    """
    on_gpu = device.type == "cuda"
    return {
        "fastgrow": _version("fastgrow"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "numpy_blas": _numpy_blas(),
        "chosen": {name: os.environ[name] for name in CHOOSING if name in os.environ},
        "threads": torch.get_num_threads(),
    }


def _numpy_blas() -> str | None:
    """The library, and the kind of processor that its kernels are for; None for an unknown one."""
    for library in threadpool_info():
        # Others may be in the process: torch's, or scipy's.
        if library["user_api"] == "blas" and "numpy" in library["filepath"]:
            return f"{library['internal_api']} {library.get('architecture', '')}".strip()
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # A tree that is on the path and not installed.
        return None

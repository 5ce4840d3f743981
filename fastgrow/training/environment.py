"""Record of the software and hardware of a run. It is for information and is never compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

from fastgrow._cpu import cpu_model

# Variables that make a library use other CPU instructions, which may sum in a different order.
INSTRUCTION_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "FASTGROW_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device, threads and the selected CPU instructions, as JSON values.

    On a CPU, runs are bit-identical if all of these values are equal.

    Args:
        device: device of the run.
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
        "chosen": {name: os.environ[name] for name in INSTRUCTION_VARIABLES if name in os.environ},
        "threads": torch.get_num_threads(),
    }


def _numpy_blas() -> str | None:
    """Return numpy's BLAS library and the CPU architecture of its kernels; None if unknown."""
    for library in threadpool_info():
        # The process may have loaded other BLAS libraries, such as torch's or scipy's.
        if library["user_api"] == "blas" and "numpy" in library["filepath"]:
            return f"{library['internal_api']} {library.get('architecture', '')}".strip()
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # A source tree that is on the path but not installed.
        return None

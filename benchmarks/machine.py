"""The measured machine: its description, its clock and its ceilings."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import fastgrow
from benchmarks import ROOT
from benchmarks.clock import Clock, CpuClock, CudaClock
from benchmarks.results import Ceilings
from benchmarks.summary import quantile
from fastgrow import _native
from fastgrow._cpu import cpu_model
from fastgrow.errors import ConfigError

COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
CEILING_RUNS = 15

CPU_NOTE = (
    "Measured on a CPU: wall-clock time of whole calls, with rotating inputs so that the cache is "
    "cold. The Triton kernels do not run on a CPU, so these numbers do not predict those of a GPU. "
    "Peak memory is the memory allocated by torch in addition to the inputs; it does not include "
    "the scratch space of matrix products."
)


# Load average per core above which other work is assumed to disturb the times.
QUIET = 0.5


@dataclass(frozen=True)
class Machine:
    """A device with its clock, description and ceilings; tests use a fake one."""

    device: torch.device
    clock: Clock
    environment: dict[str, Any]
    ceilings: Callable[[], Ceilings]

    @property
    def slug(self) -> str:
        """The name of the folder for its results."""
        name = re.sub(r"[^a-z0-9]+", "-", str(self.environment["device"]).lower()).strip("-")
        return name if self.device.type == "cuda" else f"cpu-{name}"


def cpu_notes(environment: dict[str, Any]) -> list[str]:
    """Return notes on the meaning of a CPU's numbers, and on whether other work disturbed them."""
    load, cores = environment.get("load", 0.0), environment.get("cores") or 1
    if load <= QUIET * cores:
        return [CPU_NOTE]
    busy = (
        f"The machine was busy with other work: the load average was {load:.1f} on {cores} cores "
        "at the beginning of the run. This affects times more than ratios of interleaved runs."
    )
    return [CPU_NOTE, busy]


def find_machine(kind: str | None = None) -> Machine:
    """Return the GPU if there is one, else the CPU; or the device type `kind` if given.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if kind == "cuda" and not has_gpu:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ConfigError(f"no CUDA GPU is available (torch {torch.__version__} is built {build})")
    device = torch.device("cpu" if kind == "cpu" or not has_gpu else "cuda")
    clock: Clock = CpuClock() if device.type == "cpu" else CudaClock(device)
    return Machine(device, clock, _environment(device), lambda: measure_ceilings(device, clock))


def measure_ceilings(device: torch.device, clock: Clock) -> Ceilings:
    """Measure the bandwidth of a large copy (read + written) and the speed of a matrix product."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copying = [clock.seconds(lambda: target.copy_(source)) for _ in range(CEILING_RUNS)]
    n = MATMUL_SIZE[device.type]
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = torch.randn(n, n, device=device, dtype=dtype)
    torch.mm(a, b)
    products = [clock.seconds(lambda: torch.mm(a, b)) for _ in range(CEILING_RUNS)]
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return Ceilings(
        2 * source.nbytes / quantile(copying, 0.5) / 1e9,
        2 * n**3 / quantile(products, 0.5) / 1e12,
        name,
    )


def _environment(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": device.type}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "device": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "extension": _native.CUDA.source or None,
        }
    else:
        found |= {
            "device": cpu_model(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "load": round(os.getloadavg()[0], 2),
        }
    return found | {
        "torch": torch.__version__,
        "triton": _triton_version(),
        "python": platform.python_version(),
        "fastgrow": fastgrow.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


@functools.cache
def _driver() -> str | None:
    return output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str | None:
    commit = output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changed = output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if changed else commit


def output(*command: str) -> str | None:
    """Return the first line that a command prints; None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [""])[0]

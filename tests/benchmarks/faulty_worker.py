"""A worker of the GPU suite with other operations, some of which end its process.

Run as a script instead of `python -m benchmarks.worker`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import candidates, measure, processes, rehearsal, worker
from benchmarks.case import Family, Inputs, Output, Shape
from fastgrow.ops.core import dispatch

SHAPES = [{"N": 64}, {"N": 128}, {"N": 256}]


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return {"x": torch.randn(shape["N"], generator=generator, dtype=dtype)}


def _family(name: str, fault: str = "") -> Family:
    operation = dispatch.Operation(name, [dispatch.Implementation("eager", lambda x: 3 * x)])
    # Other tests in the same process list the operations.
    del dispatch.OPERATIONS[name]

    def call(inputs: Inputs, impl: str | None) -> Output:
        if impl is None and inputs["x"].shape[0] == 128:
            FAULTS[fault]()
        result: Output = operation(inputs["x"], impl)
        return result

    return Family(
        op=name,
        grids=dict.fromkeys(("tiny", "cpu", "gpu"), SHAPES),
        inputs=_inputs,
        call=call,
        libraries=lambda case: {"library": lambda inputs: 3.0 * inputs["x"]},
    )


def _lost() -> None:
    measure.is_lost = candidates.is_lost = lambda device: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


FAULTS = {
    "": lambda: None,
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "lost": _lost,
    "hangs": lambda: time.sleep(600),
}
FAMILIES = [
    _family("sound"),
    _family("breaks", "segfault"),
    _family("loses", "lost"),
    _family("hangs", "hangs"),
]

# Faults of the candidates that the rehearsal tunes, by bucket and warps.
FAULTY_CANDIDATES = {("a", 8): "lost", ("b", 8): "segfault", ("c", 4): "hangs"}


def _launcher(kernel: rehearsal.Kernel) -> Callable[[dict[str, int]], object]:
    def launch(configuration: dict[str, int]) -> None:
        FAULTS[FAULTY_CANDIDATES.get((kernel.bucket, configuration["num_warps"]), "")]()

    return launch


if __name__ == "__main__":
    rehearsal.Kernel.launcher = _launcher
    processes.die_with_parent()
    worker.families = lambda names: [f for f in FAMILIES if f.name in names]
    sys.exit(worker.main())

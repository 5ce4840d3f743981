"""The replacement for a GPU in `python -m benchmarks gpu --rehearse`.

A rehearsal runs the whole suite for GPU machines on a CPU with tiny shapes: the stages, the
processes and the files. The result states that its numbers are not a GPU's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clock import CpuClock
from benchmarks.machine import Machine, find_machine
from benchmarks.results import Ceilings

DEVICE = "rehearsal without a GPU"
NOTE = "A rehearsal on a CPU with tiny shapes: the numbers are not a GPU's."
GRID = "tiny"
DTYPE = "fp32"
GROWTH = Path(__file__).with_suffix(".yaml")


class _Clock(CpuClock):
    """A clock with a tiny cache, so that two sets of inputs are enough."""

    def __init__(self) -> None:
        self.cache_bytes = 1


def fake_gpu() -> Machine:
    """Return the CPU as a machine with a name that no GPU has."""
    cpu = find_machine("cpu")
    environment = cpu.environment | {"kind": "rehearsal", "device": DEVICE, "capability": "9.0"}
    return dataclasses.replace(cpu, clock=_Clock(), environment=environment, ceilings=Ceilings)


@dataclass(frozen=True)
class Kernel:
    """A fake tunable, whose launches return immediately."""

    kernel: str
    bucket: str
    rank: int
    candidates: Sequence[dict[str, int]] = ({"num_warps": 4}, {"num_warps": 8})
    digest: str = "none"

    def codes(self, configuration: dict[str, int] | None) -> list[str]:
        return [f"{self.kernel} {configuration}"]

    def build(
        self, configuration: dict[str, int] | None, only: str | None = None
    ) -> dict[str, int]:
        return {"spills": 0, "shared": 0, "registers": 32}

    def launcher(self) -> Callable[[dict[str, int]], object]:
        return lambda configuration: None


def tunables(capability: int) -> list[Kernel]:
    """Return two fake tunables of the first rank and one of the second."""
    return [Kernel("stand_in", bucket, rank) for bucket, rank in (("a", 0), ("b", 0), ("c", 1))]

"""What stands in for a GPU in `python -m benchmarks gpu --rehearse`.

Everything a GPU machine is asked goes through on a CPU, with tiny shapes: the stages, the
processes, the files. The numbers are no GPU's and the result says so.
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
NOTE = "A rehearsal on a CPU with tiny shapes: no number here is a GPU's."
GRID = "tiny"
DTYPE = "fp32"
GROWTH = Path(__file__).with_suffix(".yaml")


class _Clock(CpuClock):
    """One or two sets of inputs are enough."""

    def __init__(self) -> None:
        self.cache_bytes = 1


def stand_in() -> Machine:
    """The CPU, under a name that no GPU has."""
    cpu = find_machine("cpu")
    environment = cpu.environment | {"kind": "rehearsal", "device": DEVICE, "capability": "9.0"}
    return dataclasses.replace(cpu, clock=_Clock(), environment=environment, ceilings=Ceilings)


@dataclass(frozen=True)
class Kernel:
    """Stands for something to tune; its launches return at once."""

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
    """Two that matter most, and one of the rest."""
    return [Kernel("stand_in", bucket, rank) for bucket, rank in (("a", 0), ("b", 0), ("c", 1))]

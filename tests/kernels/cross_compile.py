"""Compile kernels for GPUs that are not present, with the arguments of their launchers.

    for launch in recorded(lambda: attention.forward(q, k, v, …)):
        compiled = compile_for(launch, 90)
        assert compiled.shared <= SHARED_LIMIT and compiled.spills == 0

The launcher runs with CPU tensors; its launches are recorded and compiled with the types, constants
and alignments of the real launch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastgrow.kernels.compile_offline import (
    SHARED_LIMIT,
    Launch,
    compile_launch,
    inspect,
    recorded,
)

__all__ = ["SHARED_LIMIT", "TARGETS", "Compiled", "Launch", "compile_for", "recorded"]

TARGETS = (80, 90, 100)


@dataclass(frozen=True)
class Compiled:
    """A compiled launch."""

    shared: int  # bytes
    registers: int  # of a thread
    sass: str

    def count(self, instruction: str) -> int:
        """Return how often an instruction (`HGMMA`, `MUFU.EX2`, …) occurs in the code."""
        return len(re.findall(rf"\b{re.escape(instruction)}\b", self.sass))

    def loops(self, instruction: str) -> list[list[str]]:
        """Return the instructions of each innermost loop that contains `instruction`."""
        place, lines = {}, []
        for line in self.sass.splitlines():
            label = re.match(r"\s*(\.L_x_\d+):", line)
            if label:
                place[label[1]] = len(lines)
            code = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
            if code:
                lines.append(code[1].strip())
        spans = []
        for end, line in enumerate(lines):
            back = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
            if back and place.get(back[1], end + 1) <= end:
                spans.append((place[back[1]], end + 1))
        inner = [
            (a, b)
            for a, b in spans
            if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)
        ]
        bodies = [lines[a:b] for a, b in inner]
        return [body for body in bodies if any(instruction in line for line in body)]

    @property
    def spills(self) -> int:
        """Return the number of loads and stores of spilled registers."""
        return self.count("LDL") + self.count("STL")


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile a launch for a compute capability, such as 90 for 9.0."""
    binary = compile_launch(launch, capability)
    sass = inspect("nvdisasm", "-c", cubin=binary.cubin)
    return Compiled(binary.shared, binary.registers, sass)

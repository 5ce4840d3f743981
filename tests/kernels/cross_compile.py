"""Compiling kernels for GPUs that are not there, as their launchers would.

    for launch in recorded(lambda: attention.forward(q, k, v, …)):
        compiled = compile_for(launch, 90)
        assert compiled.shared <= SHARED_LIMIT and compiled.spills == 0

The launcher runs with CPU tensors; what it would have launched is recorded and compiled with the
types, constants and alignments that the launch would have had.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may use

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one call."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch."""

    shared: int  # bytes
    registers: int  # of a thread
    sass: str

    def count(self, instruction: str) -> int:
        """How often an instruction (`HGMMA`, `MUFU.EX2`, …) stands in the code."""
        return len(re.findall(rf"\b{re.escape(instruction)}\b", self.sass))

    def loops(self, instruction: str) -> list[list[str]]:
        """The instructions of each innermost loop in which `instruction` stands."""
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
        """Loads and stores of registers that did not fit."""
        return self.count("LDL") + self.count("STL")


def recorded(call: Callable[[], object]) -> list[Launch]:
    """What a launcher would launch, in order; nothing runs."""
    launches: list[Launch] = []

    def record(kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> None:
        for own in ("grid", "warmup"):
            kwargs.pop(own)
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        launches.append(Launch(kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return launches


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile a launch for compute capability 8.0, 9.0, 10.0 given as 80, 90, 100."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind = _kind(value)
        # As at run time: an integer 1 is a constant, and multiples of 16 are known to be such.
        if parameter.is_constexpr or kind is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
            continue
        signature[parameter.name] = kind
        if kind.startswith("*") or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = _tool("nvdisasm", "-c", cubin)
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", usage))
    return Compiled(compiled.metadata.shared, registers, sass)


def _kind(value: object) -> str | None:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32" if isinstance(value, float) else None


def _tool(name: str, *arguments: str | Path) -> str:
    command = [str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

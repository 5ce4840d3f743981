"""Compiling a launch for a GPU that need not be there.

The launcher is called with tensors whose content does not matter, on any device (`meta` will do);
what it would have launched is recorded and compiled with the types, constants and alignments that
the launch would have had. So the result is in Triton's cache when the same launch is made.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
    torch.uint8: "u8",
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
# Bytes that a program may use, by compute capability.
SHARED_LIMIT = {
    **dict.fromkeys((80, 87), 163 * 1024),
    **dict.fromkeys((90, 100, 103), 227 * 1024),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_recording = threading.Lock()


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one call."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]  # programs along each axis

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch."""

    shared: int  # bytes
    registers: int  # of a thread
    stack: int  # bytes of a thread; registers that did not fit live there
    cubin: bytes


def recorded(call: Callable[[], object]) -> list[Launch]:
    """What a launcher would launch, in order; nothing runs.

    Launches of other threads go their way meanwhile.
    """
    launches: list[Launch] = []
    thread = threading.get_ident()

    def record(kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return run(kernel, *args, **kwargs)
        grid, _ = kwargs.pop("grid"), kwargs.pop("warmup")
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        grid = tuple(grid(arguments) if callable(grid) else grid)
        launches.append(Launch(kernel, arguments, options, grid))
        return None

    with _recording:
        run = JITFunction.run
        JITFunction.run = record
        try:
            call()
        finally:
            JITFunction.run = run
    return launches


@dataclass(frozen=True)
class Specialization:
    """What of a launch its code depends on, besides the GPU; the names are Triton's."""

    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]


def specialization(launch: Launch) -> Specialization:
    """Types, constants and alignments as at run time; of the members of tuples, too."""
    found = Specialization({}, {}, {})

    def describe(value: object, path: tuple[int, ...], is_constant: bool = False) -> object:
        if isinstance(value, tuple) and not is_constant:
            return tuple(describe(x, (*path, i)) for i, x in enumerate(value))
        kind = _kind(value)
        # An integer 1 is a constant, and multiples of 16 are known to be such.
        if is_constant or kind is None or (isinstance(value, int) and value == 1):
            found.constants[path] = value
            return "constexpr"
        if kind.startswith("*") or (isinstance(value, int) and value % 16 == 0):
            found.attributes[path] = [["tt.divisibility", 16]]
        return kind

    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        found.signature[parameter.name] = describe(value, (position,), parameter.is_constexpr)
    return found


def compile_ahead(launch: Launch, capability: int) -> Binary:
    """Compile a launch for compute capability 8.0, 9.0, 10.0 given as 80, 90, 100."""
    known = specialization(launch)
    source = ASTSource(launch.kernel, known.signature, known.constants, known.attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    cubin = compiled.asm["cubin"]
    usage = inspect("cuobjdump", "-res-usage", cubin=cubin)
    return Binary(compiled.metadata.shared, _largest("REG", usage), _largest("STACK", usage), cubin)


def launch_of(call: Callable[[], object], kernel: str) -> Launch:
    """The one launch of a kernel within a call; nothing runs."""
    (launch,) = [launch for launch in recorded(call) if launch.name == kernel]
    return launch


def usage(call: Callable[[], object], kernel: str, capability: int) -> dict[str, int]:
    """What the launch of `kernel` within a call takes of a GPU; nothing runs.

    Returns:
        `spills` (bytes of a thread), `shared` (bytes of a program) and `registers` (of a thread).

    Raises:
        ValueError: it needs more shared memory than a program may use.
    """
    binary = compile_ahead(launch_of(call, kernel), capability)
    limit = shared_limit(capability)
    if binary.shared > limit:
        raise ValueError(f"{binary.shared} bytes of shared memory, allowed {limit}")
    return {"spills": binary.stack, "shared": binary.shared, "registers": binary.registers}


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a program may use; 99 KiB on consumer GPUs."""
    return SHARED_LIMIT.get(capability, 99 * 1024)


def inspect(name: str, *arguments: str, cubin: bytes) -> str:
    """What one of the tools that come with Triton says of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(TOOLS / name), *arguments, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _largest(resource: str, usage: str) -> int:
    return max(int(n) for n in re.findall(rf"{resource}:(\d+)", usage))


def _kind(value: object) -> str | None:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32" if isinstance(value, float) else None

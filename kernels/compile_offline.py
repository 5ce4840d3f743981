"""Compiling a launch for a GPU that need not be there.

The launcher is called with tensors whose content does not matter, on any device (`meta` will do);
what it would have launched is recorded, and compiled by the functions that Triton's own launch
calls. So the result is what the same launch on that GPU finds in Triton's cache on disk. It takes
neither the GPU nor its driver (`triton.runtime.driver`), so it may be done in processes of their
own while the GPU measures.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
# Bytes that a program may use, by compute capability.
SHARED_LIMIT = {
    **dict.fromkeys((80, 87), 163 * 1024),
    **dict.fromkeys((90, 100, 103), 227 * 1024),
}

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
    spills: int  # bytes of a thread, of registers that did not fit
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
class _Pointer:
    """Stands for a tensor: what Triton reads of one."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


def _as_pointer(value: object) -> object:
    """A tensor as it will lie on the GPU, where every allocation begins at a multiple of 256.

    Where it lies here says nothing: on `meta` nowhere, on a CPU wherever numpy, say, put it.
    """
    if isinstance(value, torch.Tensor):
        begins = int(value.storage_offset()) * value.element_size() if value.numel() else 0
        return _Pointer(value.dtype, begins)
    if isinstance(value, tuple):
        members = tuple(_as_pointer(member) for member in value)
        return value._make(members) if hasattr(value, "_make") else members
    return value


@functools.cache
def _backend(capability: int) -> Any:
    return make_backend(GPUTarget("cuda", capability, 32))


@functools.cache
def _binder(kernel: JITFunction[Any], capability: int) -> Callable[..., Any]:
    """What a launch calls to see types, constants and alignments in its arguments."""
    return create_function_from_signature(kernel.signature, kernel.params, _backend(capability))


def _source(launch: Launch, capability: int) -> tuple[ASTSource, Any]:
    """What a launch gives to the compiler: a kernel for these arguments, and options.

    As in `JITFunction.run`, by the same functions. Not by that method itself: it asks Triton's
    current driver for the GPU, which all threads share, and keeps what it compiled as that GPU's.
    """
    kernel, arguments = launch.kernel, launch.arguments
    given = {
        **{name: _as_pointer(value) for name, value in arguments.items()},
        **launch.options,
        "debug": (arguments | launch.options).get("debug", kernel.debug) or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }
    bound, specialization, left = _binder(kernel, capability)(**given)
    options, *packed = kernel._pack_args(_backend(capability), given, bound, specialization, left)
    return ASTSource(kernel, *packed), options


def code(launch: Launch, capability: int) -> str:
    """The same for launches that compile to the same binary, another one for others."""
    source, options = _source(launch, capability)
    return f"{source.hash()}-{options.hash()}"


def compile_launch(launch: Launch, capability: int) -> Binary:
    """Compile a launch for compute capability 8.0, 9.0, 10.0 given as 80, 90, 100."""
    source, options = _source(launch, capability)
    compiled = triton.compile(source, _backend(capability).target, options.__dict__)
    cubin = compiled.asm["cubin"]
    usage = inspect("cuobjdump", "-res-usage", cubin=cubin)
    registers, spills = (
        max(map(int, re.findall(rf"{resource}:(\d+)", usage))) for resource in ("REG", "STACK")
    )
    return Binary(compiled.metadata.shared, registers, spills, cubin)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the kernels that are compiled within a `with`, in all threads of the process.

    What Triton finds in its cache on disk is not compiled.
    """
    names: list[str] = []
    before = knobs.compilation.listener

    def listen(**event: Any) -> None:
        if not event["cache_hit"]:
            names.append(event["src"].name)
        if before is not None:
            before(**event)

    with knobs.compilation.scope():
        knobs.compilation.listener = listen
        yield names


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a program may use; 99 KiB on consumer GPUs."""
    return SHARED_LIMIT.get(capability, 99 * 1024)


def inspect(name: str, *arguments: str, cubin: bytes) -> str:
    """What one of the tools that come with Triton says of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [getattr(knobs.nvidia, name).path, *arguments, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

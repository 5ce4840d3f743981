"""Compile a launch for a GPU that need not be present.

The launcher is called with tensors of any content on any device, such as `meta`. Its launches are
recorded instead of run, and compiled by the functions that Triton's own launch calls. The result is
therefore what the same launch on that GPU finds in Triton's cache on disk. Neither the GPU nor its
driver (`triton.runtime.driver`) is needed, so separate processes can compile while the GPU
measures.
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
# Bytes of shared memory that a program may use, by compute capability.
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
    """A compiled launch."""

    shared: int  # bytes of shared memory
    registers: int  # per thread
    spills: int  # bytes per thread
    cubin: bytes


def recorded(call: Callable[[], object]) -> list[Launch]:
    """Return the launches of a launcher in order, without running them.

    Launches of other threads run as usual in the meantime.
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
    """Replacement for a tensor, with the attributes that Triton reads."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


def _as_pointer(value: object) -> object:
    """Replace tensors by pointers as on the GPU, where allocations begin at multiples of 256.

    The address here is not meaningful: `meta` tensors have none, and on a CPU it depends on the
    allocator.
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
    """Return the function that finds types, constants and alignments of a launch's arguments."""
    return create_function_from_signature(kernel.signature, kernel.params, _backend(capability))


def _source(launch: Launch, capability: int) -> tuple[ASTSource, Any]:
    """Return what a launch passes to the compiler: the kernel for its arguments, and options.

    This calls the same functions as `JITFunction.run`. That method itself cannot be used, because
    it takes the GPU from Triton's current driver, which all threads share, and stores what it
    compiled as that GPU's.
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
    """Return a string that is equal for launches that compile to the same binary."""
    source, options = _source(launch, capability)
    return f"{source.hash()}-{options.hash()}"


def compile_launch(launch: Launch, capability: int) -> Binary:
    """Compile a launch for a compute capability, such as 90 for 9.0."""
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
    """Collect the names of kernels compiled within a `with`, in all threads of the process.

    Kernels that Triton finds in its cache on disk are not compiled and not listed.
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
    """Return the bytes of shared memory that a program may use; 99 KiB on consumer GPUs."""
    return SHARED_LIMIT.get(capability, 99 * 1024)


def inspect(name: str, *arguments: str, cubin: bytes) -> str:
    """Run a tool that comes with Triton on a compiled kernel and return its output."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [getattr(knobs.nvidia, name).path, *arguments, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

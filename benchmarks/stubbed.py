"""Triton without a GPU: everything of a launch happens but the compiler and the C launch function.

A stand-in takes the place of Triton's driver. What a launch costs in Python is still spent: binding
the arguments, describing what the kernel is specialised for, looking the kernel up, and the Python
part of Triton's launcher. Two things are not: a kernel that is asked for the first time is not
compiled, and the C function, which would hand the arguments to the CUDA driver, does nothing.

CPU tensors pass for the device's. So allocating one costs what it does on a CPU (less than on a
GPU), and entering a device's context costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastgrow.ops.core import dispatch

CAPABILITY = 90
# Not a device's number, so that kernels compiled for a real one stay out of it and untouched.
DEVICE = -1


class _Driver:
    """As much of Triton's driver as a launch asks for."""

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


class _Launcher(CudaLauncher):
    """Triton's own launcher without its C function."""

    def __init__(self) -> None:
        self.num_ctas = 1
        self.global_scratch_size = self.profile_scratch_size = 0
        self.global_scratch_align = self.profile_scratch_align = 1
        self.launch_cooperative_grid = self.launch_pdl = False
        self.arg_annotations = self.kernel_signature = ()

    def launch(self, *arguments: Any) -> None:
        pass


class _Kernel:
    """Stands for a compiled kernel."""

    function = 0
    packed_metadata = ()

    def __init__(self) -> None:
        self.run = _Launcher()

    def launch_metadata(self, grid: tuple[int, ...], stream: int, *arguments: Any) -> None:
        return None


class Variants:
    """Which kernels were launched, and in how many variants a GPU would have compiled each."""

    def __init__(self) -> None:
        self.kernels: set[JITFunction[Any]] = set()

    def count(self) -> dict[str, int]:
        """Variants by the kernel's name."""
        return {kernel.__name__: len(self.keys(kernel)) for kernel in self.kernels}

    def keys(self, kernel: JITFunction[Any]) -> list[str]:
        """What Triton keeps the variants of a kernel under."""
        return list(kernel.device_caches[DEVICE][0])


@contextlib.contextmanager
def launches_stubbed() -> Iterator[Variants]:
    """Within, launches of CPU tensors go through Triton as a GPU's do, and nothing is computed.

    Implementations that need a GPU say that they can run, and the automatic choice takes them as
    it would there. Not under TRITON_INTERPRET=1, and for one thread at a time.
    """
    variants = Variants()

    def stand_in(kernel: JITFunction[Any], key: str, *rest: Any, **named: Any) -> _Kernel:
        variants.kernels.add(kernel)
        made = kernel.device_caches[DEVICE][0][key] = _Kernel()
        return made

    patches = (
        mock.patch.object(driver, "_active", _Driver()),
        mock.patch.object(JITFunction, "_do_compile", stand_in),
        # What lets the kernels run on a CPU elsewhere, and the rule for every CPU tensor.
        mock.patch.object(dispatch, "INTERPRETED", True),
        mock.patch.object(dispatch, "triton_pays_on", _pays),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        try:
            yield variants
        finally:
            for kernel in variants.kernels:
                del kernel.device_caches[DEVICE]


def _pays(tensor: object) -> tuple[bool, str]:
    return True, ""

"""Run Triton launches without a GPU: all steps except the compiler and the C launch function.

Triton's driver is replaced by a stub. The Python part of a launch still runs: binding the
arguments, computing the kernel's specialisation, looking up the kernel, and the Python part of
Triton's launcher. Two steps do not run: a kernel is not compiled at its first launch, and the C
function, which would pass the arguments to the CUDA driver, does nothing.

CPU tensors are used in place of the device's. Allocating one takes as long as on a CPU (less than
on a GPU), and entering a device's context takes no time.
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
# Not the index of a real device, so that its compiled kernels are neither used nor changed.
DEVICE = -1


class _Driver:
    """The parts of Triton's driver that a launch uses."""

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


class _Launcher(CudaLauncher):
    """Triton's launcher without its C function."""

    def __init__(self) -> None:
        self.num_ctas = 1
        self.global_scratch_size = self.profile_scratch_size = 0
        self.global_scratch_align = self.profile_scratch_align = 1
        self.launch_cooperative_grid = self.launch_pdl = False
        self.arg_annotations = self.kernel_signature = ()

    def launch(self, *arguments: Any) -> None:
        pass


class _Kernel:
    """Replaces a compiled kernel."""

    function = 0
    packed_metadata = ()

    def __init__(self) -> None:
        self.run = _Launcher()

    def launch_metadata(self, grid: tuple[int, ...], stream: int, *arguments: Any) -> None:
        return None


class Variants:
    """The launched kernels, and the variants of each that a GPU would have compiled."""

    def __init__(self) -> None:
        self.kernels: set[JITFunction[Any]] = set()

    def count(self) -> dict[str, int]:
        """Return the number of variants by the kernel's name."""
        return {kernel.__name__: len(self.keys(kernel)) for kernel in self.kernels}

    def keys(self, kernel: JITFunction[Any]) -> list[str]:
        """Return the keys of a kernel's variants in Triton's cache."""
        return list(kernel.device_caches[DEVICE][0])


@contextlib.contextmanager
def launches_stubbed() -> Iterator[Variants]:
    """In this context, launches on CPU tensors go through Triton as on a GPU, without computing.

    Implementations that need a GPU report that they can run, and the automatic choice selects them
    as on a GPU. It cannot be used with TRITON_INTERPRET=1, nor in several threads at a time.
    """
    variants = Variants()

    def stand_in(kernel: JITFunction[Any], key: str, *rest: Any, **named: Any) -> _Kernel:
        variants.kernels.add(kernel)
        made = kernel.device_caches[DEVICE][0][key] = _Kernel()
        return made

    patches = (
        mock.patch.object(driver, "_active", _Driver()),
        mock.patch.object(JITFunction, "_do_compile", stand_in),
        # Let the kernels accept CPU tensors, and let the automatic choice select them.
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

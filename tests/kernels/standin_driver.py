"""A fake GPU driver: Triton launches through it, and nothing runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget

# A separate device for each: Triton stores compiled kernels by device.
_devices = itertools.count(1000)


class StandInDriver:
    """The parts of a driver that `JITFunction.run` uses, for a GPU of a compute capability."""

    def __init__(self, capability: int) -> None:
        self.device = next(_devices)
        self.target = GPUTarget("cuda", capability, 32)
        self.launched: list[str] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            load_binary=lambda name, cubin, shared, device: (object(), object(), 32, 0, 1024),
        )

    def launcher_cls(self, source: object, metadata: object) -> object:
        return lambda *arguments: self.launched.append(source.name)  # type: ignore[attr-defined]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextlib.contextmanager
def standing_in(capability: int) -> Iterator[StandInDriver]:
    """Replace Triton's driver within a `with`."""
    config = triton.runtime.driver
    before = config._active
    driver = StandInDriver(capability)
    config.set_active(driver)
    try:
        yield driver
    finally:
        config._active = before

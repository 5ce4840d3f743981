"""Timing one call, and the cache that has to be cold before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

SHORTEST_SPIN, LONGEST_SPIN = 0.3e-3, 0.5  # seconds
# How much longer the device is kept busy than the host took for the call's launches.
SAFETY = 1.5
ATTEMPTS = 3
CALIBRATION_CYCLES = 2_000_000
DEFAULT_CACHE = 32 << 20


Run = Callable[[], object]


class Clock(Protocol):
    """Measures single calls on one device."""

    cache_bytes: int

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        """Run once and return how long it took.

        Args:
            name: tells calls of one kind from others.
            again: prepares another such call, where `run` can be made only once.
        """
        ...


class CpuClock:
    """Wall-clock time of the whole call."""

    def __init__(self) -> None:
        self.cache_bytes = _last_level_cache()

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        # Freeing the result is not the operation's time.
        del result
        return elapsed


class CudaClock:
    """Device time between two events, without what the host takes to launch.

    Before the first event the device spins, for as long as the host takes to launch the whole call:
    then nothing between the events waits for the host. Whether that was so is looked at afterwards,
    and a call that was not covered is made again behind a longer spin. How long a spin each kind
    of call needs is kept. A call that waits for the device itself can be covered by no spin; its
    time is what it is, and it is not made again.
    """

    def __init__(self, device: torch.device, gpu: Gpu | None = None) -> None:
        self._gpu = gpu or Gpu(device)
        self.cache_bytes = self._gpu.cache_bytes
        self._spins: dict[str, float] = {}
        self._waiting: set[str] = set()

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        for attempt in range(1 if name in self._waiting else ATTEMPTS):
            if attempt and again is not None:
                run = again()
            spin = self._spins.get(name, SHORTEST_SPIN)
            seconds, host, is_covered = self._gpu.timed(run, spin)
            self._spins[name] = min(max(SHORTEST_SPIN, SAFETY * host), LONGEST_SPIN)
            if is_covered:
                return seconds
        # The host's time grew with the spin: the call waits for what it has launched.
        self._waiting.add(name)
        self._spins[name] = SHORTEST_SPIN
        return seconds


class Gpu:
    """A device, as a clock sees it."""

    def __init__(self, device: torch.device) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device
        self._cycles_a_second = 0.0

    def timed(self, run: Run, spin: float) -> tuple[float, float, bool]:
        """Make a call behind a spin of so many seconds.

        Returns:
            Its seconds on the device, those that the host took to launch it, and whether the device
            was still spinning when the host had done so.
        """
        with torch.cuda.device(self._device):
            cycles = int(spin * self._speed())
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            began = time.perf_counter()
            torch.cuda._sleep(cycles)
            start.record()
            run()
            end.record()
            is_covered = not start.query()
            host = time.perf_counter() - began
            end.synchronize()
            return start.elapsed_time(end) / 1e3, host, is_covered

    def _speed(self) -> float:
        """Cycles that it spins in a second, measured once, when it is awake."""
        if not self._cycles_a_second:
            for _ in range(2):
                start = torch.cuda.Event(enable_timing=True)
                end = torch.cuda.Event(enable_timing=True)
                start.record()
                torch.cuda._sleep(CALIBRATION_CYCLES)
                end.record()
                end.synchronize()
            self._cycles_a_second = CALIBRATION_CYCLES / (start.elapsed_time(end) / 1e3)
        return self._cycles_a_second


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _last_level_cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=DEFAULT_CACHE)

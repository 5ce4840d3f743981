"""Timing one call, and the cache that has to be cold before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

# About 0.3 ms of a GPU's time: the host records the events and launches the call meanwhile, so
# that the time between the events is the device's alone.
SPIN_CYCLES = 500_000
DEFAULT_CACHE = 32 << 20


class Clock(Protocol):
    """Measures single calls on one device."""

    cache_bytes: int

    def seconds(self, run: Callable[[], object]) -> float:
        """Run once and return how long it took."""
        ...


class CpuClock:
    """Wall-clock time of the whole call."""

    def __init__(self) -> None:
        self.cache_bytes = _last_level_cache()

    def seconds(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        # Freeing the result is not the operation's time.
        del result
        return elapsed


class CudaClock:
    """Device time between two events; launch overhead on the host is hidden."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size

    def seconds(self, run: Callable[[], object]) -> float:
        with torch.cuda.device(self.device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(SPIN_CYCLES)
            start.record()
            run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _last_level_cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=DEFAULT_CACHE)

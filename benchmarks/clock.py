"""Timing one call, and the cache that has to be cold before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

SHORTEST_SPIN, LONGEST_SPIN = 0.3e-3, 0.5  # seconds
# How much longer the device is kept busy than the host took for the call's launches.
SAFETY = 1.5
ATTEMPTS = 3
# Cycles a second that a device is taken to make before its first spin tells: an H200's are 0.3e9 at
# rest and 2e9 under load. Too many only make the first spins too long.
FIRST_SPEED = 2e9
# A spin looks longer than it was where another process had the device meanwhile, or the host was
# late to launch it, and the next one must not be too short for that: a slower clock is believed by
# a tenth at a time, at the cost of some spins that last too long, and a faster one at once.
SPEED_KEPT = 0.9
# How near to the spin's change that of the host's time is in a call that waits for the device.
NEAR = 0.25
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

    def covered(self, name: str) -> int | None:
        """How many of the times told for that name are without the host's launches.

        None where the two are not told apart.
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

    def covered(self, name: str) -> int | None:
        return None


@dataclass(frozen=True)
class Timed:
    """A call that was made behind a spin, in seconds.

    Args:
        seconds: those on the device.
        host: those that the host took to launch it.
        spun: those that the device spun.
        is_covered: whether it was still spinning when the host had launched the call.
    """

    seconds: float
    host: float
    spun: float
    is_covered: bool

    def waits(self, other: Timed) -> bool:
        """Whether the host's time changed as the spin did, from another such call to this one."""
        change = self.spun - other.spun
        return abs(self.host - other.host - change) < NEAR * abs(change)


class CudaClock:
    """Device time between two events, without what the host takes to launch.

    Before the first event the device spins, for as long as the host takes to launch the whole call:
    then nothing between the events waits for the host. Whether that was so is looked at afterwards,
    and a call that was not covered is made again behind a longer spin. How long a spin each kind
    of call needs is kept, and how fast the device spins is learnt from every spin: its clock is
    several times as fast under load as at rest. A call that waits for the device itself can be
    covered by no spin, since the host's time grows with it; its time is what it is, and it is not
    made again. That is found anew each time, so that a host which was slow by chance is no reason
    to measure the later calls otherwise.
    """

    def __init__(self, device: torch.device, gpu: Gpu | None = None) -> None:
        self._gpu = gpu or Gpu(device)
        self.cache_bytes = self._gpu.cache_bytes
        self._speed = FIRST_SPEED
        self._spins: dict[str, float] = {}
        # The last call of each kind, where it was not covered.
        self._uncovered: dict[str, Timed] = {}
        self._covered: Counter[str] = Counter()

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        for attempt in range(ATTEMPTS):
            if attempt and again is not None:
                run = again()
            timed = self._timed(run, name)
            before = self._uncovered.pop(name, None)
            if timed.is_covered:
                self._covered[name] += 1
                break
            self._uncovered[name] = timed
            if before is not None and timed.waits(before):
                # A longer spin would only be waited for.
                self._spins[name] = SHORTEST_SPIN
                break
            if timed.host > LONGEST_SPIN:
                # None that is allowed is long enough.
                break
        return timed.seconds

    def covered(self, name: str) -> int | None:
        return self._covered[name]

    def _timed(self, run: Run, name: str) -> Timed:
        """Make a call behind the spin that its kind needs, and learn from both."""
        cycles = int(self._spins.get(name, SHORTEST_SPIN) * self._speed)
        timed = self._gpu.timed(run, cycles)
        self._speed = max(cycles / timed.spun, SPEED_KEPT * self._speed)
        self._spins[name] = min(max(SHORTEST_SPIN, SAFETY * timed.host), LONGEST_SPIN)
        return timed


class Gpu:
    """A device, as a clock sees it."""

    def __init__(self, device: torch.device) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device

    def timed(self, run: Run, cycles: int) -> Timed:
        """Make a call behind a spin of so many cycles."""
        with torch.cuda.device(self._device):
            spin, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            spin.record()
            torch.cuda._sleep(cycles)
            # Not before: loading the first spin of a process takes longer than a call.
            began = time.perf_counter()
            start.record()
            run()
            end.record()
            is_covered = not start.query()
            host = time.perf_counter() - began
            end.synchronize()
            spun = spin.elapsed_time(start) / 1e3
            return Timed(start.elapsed_time(end) / 1e3, host, spun, is_covered)


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _last_level_cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=DEFAULT_CACHE)

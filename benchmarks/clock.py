"""Time a single call on a CPU or GPU, and report the size of the cache to be emptied before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

SHORTEST_SPIN, LONGEST_SPIN = 0.3e-3, 0.5  # seconds
# Ratio of the time for which the device is kept busy to the host's time for the call's launches.
SAFETY = 1.5
ATTEMPTS = 3
# Cycles per second that are assumed for a device before its first spin is measured: an H200 has
# 0.3e9 when idle and 2e9 under load. Too high a value only makes the first spins too long.
FIRST_SPEED = 2e9
# A measured spin is too long if another process used the device meanwhile or the host launched it
# late; the next spin must not be too short because of that. So the estimated speed decreases by at
# most a tenth at a time, at the cost of some spins that last too long, and increases immediately.
SPEED_KEPT = 0.9
# Tolerance for the change of the host's time to equal the spin's change: the call then waits for
# the device.
NEAR = 0.25
DEFAULT_CACHE = 32 << 20


Run = Callable[[], object]


class Clock(Protocol):
    """Measures single calls on one device."""

    cache_bytes: int

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        """Run once and return the time in seconds.

        Args:
            run: the call to time.
            name: name that all calls of one kind share.
            again: prepares another such call, if `run` can be called only once.
        """
        ...

    def covered(self, name: str) -> int | None:
        """Return how many of the times for that name exclude the host's launch time.

        None if the clock does not distinguish the two.
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
        # Freeing the result is not part of the operation's time.
        del result
        return elapsed

    def covered(self, name: str) -> int | None:
        return None


@dataclass(frozen=True)
class Timed:
    """Times of a call that was launched while the device was spinning, in seconds.

    Args:
        seconds: time on the device.
        host: time that the host took to launch the call.
        spun: time that the device spun.
        is_covered: whether the device was still spinning when the host had launched the call.
    """

    seconds: float
    host: float
    spun: float
    is_covered: bool

    def waits(self, other: Timed) -> bool:
        """Whether the host's time changed by as much as the spin, compared with another call."""
        change = self.spun - other.spun
        return abs(self.host - other.host - change) < NEAR * abs(change)


class CudaClock:
    """Device time between two events, without the host's launch time.

    Before the first event, the device spins for as long as the host takes to launch the whole call;
    then nothing between the events waits for the host. This is checked afterwards, and a call that
    was not covered by the spin is repeated with a longer spin. The clock stores the spin that each
    kind of call needs, and updates its estimate of the device's speed from every spin, because a
    device is several times as fast under load as when idle. A call that itself waits for the device
    cannot be covered by any spin, because the host's time grows with the spin; its time is used as
    measured, and it is not repeated. This is checked for each call separately, so that a host that
    was slow by chance does not change how later calls are measured.
    """

    def __init__(self, device: torch.device, gpu: Gpu | None = None) -> None:
        self._gpu = gpu or Gpu(device)
        self.cache_bytes = self._gpu.cache_bytes
        self._speed = FIRST_SPEED
        self._spins: dict[str, float] = {}
        # The last call of each kind, if it was not covered.
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
                # The call waits for the device, so that a longer spin does not help.
                self._spins[name] = SHORTEST_SPIN
                break
            if timed.host > LONGEST_SPIN:
                # Not even the longest allowed spin is long enough.
                break
        return timed.seconds

    def covered(self, name: str) -> int | None:
        return self._covered[name]

    def _timed(self, run: Run, name: str) -> Timed:
        """Time a call with the spin that its kind needs, and update the estimates from both."""
        cycles = int(self._spins.get(name, SHORTEST_SPIN) * self._speed)
        timed = self._gpu.timed(run, cycles)
        self._speed = max(cycles / timed.spun, SPEED_KEPT * self._speed)
        self._spins[name] = min(max(SHORTEST_SPIN, SAFETY * timed.host), LONGEST_SPIN)
        return timed


class Gpu:
    """The device operations that a clock uses."""

    def __init__(self, device: torch.device) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device

    def timed(self, run: Run, cycles: int) -> Timed:
        """Time a call that is launched while the device spins for `cycles` cycles."""
        with torch.cuda.device(self._device):
            spin, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            spin.record()
            torch.cuda._sleep(cycles)
            # The time starts here, because loading a process's first spin takes longer than a call.
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

"""A GPU's clock measures only the device: its spin covers the host's launch time."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
import torch
from fake_time import Ticking

from benchmarks import show
from benchmarks.case import Case, Family
from benchmarks.clock import (
    ATTEMPTS,
    FIRST_SPEED,
    LONGEST_SPIN,
    SAFETY,
    SHORTEST_SPIN,
    CudaClock,
    Gpu,
    Timed,
)
from benchmarks.measure import Budget, Settings, measure
from benchmarks.results import Ceilings

DEVICE = 5e-5
# Factor by which an H200's clock is slower when idle than under load.
IDLE = 5.7


class FakeGpu:
    """A device on which every call takes `DEVICE` seconds.

    Args:
        host: seconds that the host takes to launch each call, or all calls.
        waits: whether the call itself waits for the device, and so for the spin.
        speed: cycles per second.
    """

    cache_bytes = 1

    def __init__(
        self, host: float | Iterable[float], *, waits: bool = False, speed: float = FIRST_SPEED
    ) -> None:
        self.hosts = itertools.repeat(host) if isinstance(host, float) else iter(host)
        self.waits, self.speed = waits, speed
        self.spins: list[float] = []

    def timed(self, run: Callable[[], object], cycles: int) -> Timed:
        run()
        spun = cycles / self.speed
        self.spins.append(spun)
        host = next(self.hosts) + (spun if self.waits else 0.0)
        return Timed(DEVICE + max(0.0, host - spun), host, spun, host < spun)


def nothing() -> None: ...


def clock_on(gpu: FakeGpu) -> CudaClock:
    return CudaClock(torch.device("cuda"), gpu)  # type: ignore[arg-type]


def times(clock: CudaClock, count: int) -> list[float]:
    return [clock.seconds(nothing, "it") for _ in range(count)]


def test_a_short_call_is_made_once_behind_the_shortest_spin() -> None:
    gpu = FakeGpu(host=5e-5)
    assert clock_on(gpu).seconds(nothing) == DEVICE
    assert gpu.spins == [SHORTEST_SPIN]


def test_a_call_of_a_slow_host_is_made_again_and_the_spin_is_kept() -> None:
    gpu = FakeGpu(host=4e-3)
    clock = clock_on(gpu)
    assert times(clock, 2) == [DEVICE] * 2
    assert gpu.spins == pytest.approx([SHORTEST_SPIN, SAFETY * 4e-3, SAFETY * 4e-3])
    # The host has become faster, which does not affect the spins of other calls.
    gpu.hosts = itertools.repeat(1e-5)
    times(clock, 2)
    clock.seconds(nothing, "another")
    assert gpu.spins[3:] == pytest.approx([SAFETY * 4e-3, SHORTEST_SPIN, SHORTEST_SPIN])


def test_a_call_that_can_be_made_once_is_prepared_again() -> None:
    made: list[str] = []

    def again() -> Callable[[], object]:
        return lambda: made.append("again")

    gpu = FakeGpu(host=4e-3)
    clock_on(gpu).seconds(lambda: made.append("first"), "slow", again)
    assert made == ["first", "again"]


def test_a_call_that_waits_for_the_device_is_not_made_over_and_over() -> None:
    gpu = FakeGpu(host=1e-3, waits=True)
    clock = clock_on(gpu)
    assert times(clock, 100) == pytest.approx([DEVICE + 1e-3] * 100)
    assert len(gpu.spins) == 150
    # Nor behind ever longer spins.
    assert max(gpu.spins) < 3e-3
    assert clock.covered("it") == 0


def test_no_spin_is_longer_than_is_bearable() -> None:
    gpu = FakeGpu(host=0.4)
    assert times(clock_on(gpu), 2) == [DEVICE] * 2
    assert max(gpu.spins) == LONGEST_SPIN
    # And one that covers nothing is not tried.
    gpu = FakeGpu(host=10.0)
    clock = clock_on(gpu)
    times(clock, 3)
    assert (len(gpu.spins), clock.covered("it")) == (3, 0)


def test_a_device_that_is_faster_than_it_was_taken_to_be_is_found_out() -> None:
    gpu = FakeGpu(host=4e-4, speed=IDLE * FIRST_SPEED)
    clock = clock_on(gpu)
    assert times(clock, 52) == [DEVICE] * 52
    assert clock.covered("it") == 52
    assert len(gpu.spins) == 53


def test_a_device_that_wakes_up_later_is_found_out() -> None:
    gpu = FakeGpu(host=4e-4, speed=FIRST_SPEED / IDLE)
    clock = clock_on(gpu)
    times(clock, 40)
    assert gpu.spins[-1] == pytest.approx(SAFETY * 4e-4, rel=1e-3)
    gpu.spins.clear()
    gpu.speed = FIRST_SPEED
    assert times(clock, 40) == [DEVICE] * 40
    assert len(gpu.spins) == 41


def test_a_device_that_slows_down_does_not_spin_too_long_for_ever() -> None:
    gpu = FakeGpu(host=4e-4)
    clock = clock_on(gpu)
    times(clock, 3)
    gpu.speed /= IDLE
    times(clock, 20)
    assert gpu.spins[-1] == pytest.approx(SAFETY * 4e-4, rel=1e-3)


def test_a_spin_that_another_process_drew_out_leaves_no_call_bare() -> None:
    gpu = FakeGpu(host=4e-4)
    clock = clock_on(gpu)
    times(clock, 3)
    gpu.spins.clear()
    for _ in range(3):
        gpu.speed /= 10
        times(clock, 1)
        gpu.speed *= 10
        times(clock, 1)
    assert clock.covered("it") == 9
    assert len(gpu.spins) == 6


def test_a_host_that_is_slow_by_chance_is_not_taken_to_wait() -> None:
    rng = random.Random(0)
    hosts = [4e-4 * rng.lognormvariate(0, 1) for _ in range(400)]
    gpu = FakeGpu(hosts)
    clock = clock_on(gpu)
    jittery = times(clock, 200)
    # Chance may be against all attempts, or look like waiting, a few times.
    assert jittery.count(DEVICE) == clock.covered("it")
    assert jittery.count(DEVICE) > 180
    gpu.hosts = itertools.repeat(4e-4)
    assert times(clock, 50) == [DEVICE] * 50


def test_what_looks_like_waiting_once_is_no_last_word() -> None:
    first = 1e-3
    grown = first + SAFETY * first - SHORTEST_SPIN
    gpu = FakeGpu([first, grown, *itertools.repeat(4e-4, 100)])
    clock = clock_on(gpu)
    assert times(clock, 1)[0] > DEVICE
    assert len(gpu.spins) == 2, "made again, though the host's time grew as the spin did"
    assert times(clock, 50) == [DEVICE] * 50


def test_chance_that_does_not_follow_the_spin_ends_no_attempts() -> None:
    # The second spin is 1.5 ms.
    gpu = FakeGpu([1e-3, 1.6e-3, 1e-3])
    assert times(clock_on(gpu), 1) == [DEVICE]
    assert len(gpu.spins) == ATTEMPTS


@pytest.mark.parametrize(("waits", "covered"), [(False, 3), (True, 0)])
def test_how_many_times_are_the_devices_alone_stands_in_the_row(
    family: Family, waits: bool, covered: int
) -> None:
    case = Case(family, {"N": 64}, "fp32", "forward")
    settings = Settings(("library",), seconds=0.0, min_rounds=3)
    clock = clock_on(FakeGpu(host=1e-3, waits=waits))
    rows = measure(case, settings, clock, Budget(60, Ticking()))
    assert [(row.contender, row.runs, row.covered) for row in rows] == [
        ("fastgrow", 3, covered), ("library", 3, covered)
    ]  # fmt: skip
    note = "library: 3 of 3 times include the host's launch time"
    assert (note in show.case_table(rows, Ceilings())) == waits


class FakeCuda:
    """A stream on which all work takes time, which events read when they are recorded.

    Args:
        is_over: whether the spin is over when the host has launched everything.
    """

    def __init__(self, is_over: bool) -> None:
        self.seconds = 0.0
        self.is_over = is_over

    def sleep(self, cycles: int) -> None:
        self.seconds += cycles / FIRST_SPEED

    def run(self) -> None:
        self.seconds += DEVICE

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(query=lambda: self.is_over, synchronize=nothing)

        def record() -> None:
            event.at = self.seconds

        def elapsed_time(later: SimpleNamespace) -> float:
            return float(1e3 * (later.at - event.at))

        event.record, event.elapsed_time = record, elapsed_time
        return event


@pytest.mark.parametrize("is_over", [False, True])
def test_a_gpu_tells_the_call_and_the_spin_apart(
    is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(is_over)
    found = SimpleNamespace(L2_cache_size=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", cuda.event)
    monkeypatch.setattr(torch.cuda, "_sleep", cuda.sleep)
    timed = Gpu(torch.device("cuda")).timed(cuda.run, cycles=int(1e-3 * FIRST_SPEED))
    assert timed.spun == pytest.approx(1e-3)
    assert timed.seconds == pytest.approx(DEVICE)
    assert timed.is_covered is not is_over
    assert 0 < timed.host < 1

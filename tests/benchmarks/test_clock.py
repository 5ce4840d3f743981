"""A GPU's clock measures the device alone: its spin covers what the host takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.clock import LONGEST_SPIN, SAFETY, SHORTEST_SPIN, CudaClock


class FakeGpu:
    """A device on which every call takes 1 ms, launched by a host that takes `host` seconds.

    `waits`: the call itself waits for the device, and with it for the spin.
    """

    cache_bytes = 1

    def __init__(self, host: float, *, waits: bool = False) -> None:
        self.host, self.waits = host, waits
        self.spins: list[float] = []

    def timed(self, run: Callable[[], object], spin: float) -> tuple[float, float, bool]:
        run()
        self.spins.append(spin)
        host = self.host + (spin if self.waits else 0.0)
        return 1e-3 + max(0.0, host - spin), host, host < spin


def nothing() -> None: ...


def clock_on(gpu: FakeGpu) -> CudaClock:
    return CudaClock(torch.device("cuda"), gpu)  # type: ignore[arg-type]


def test_a_short_call_is_made_once_behind_the_shortest_spin() -> None:
    gpu = FakeGpu(host=5e-5)
    assert clock_on(gpu).seconds(nothing) == 1e-3
    assert gpu.spins == [SHORTEST_SPIN]


def test_a_call_of_a_slow_host_is_made_again_and_the_spin_is_kept() -> None:
    gpu = FakeGpu(host=4e-3)
    clock = clock_on(gpu)
    assert clock.seconds(nothing, "slow") == 1e-3
    assert clock.seconds(nothing, "slow") == 1e-3
    assert gpu.spins == [SHORTEST_SPIN, SAFETY * 4e-3, SAFETY * 4e-3]
    # The host has become faster, and other calls know nothing of it.
    gpu.host = 1e-5
    clock.seconds(nothing, "slow")
    clock.seconds(nothing, "slow")
    clock.seconds(nothing, "another")
    assert gpu.spins[3:] == [SAFETY * 4e-3, SHORTEST_SPIN, SHORTEST_SPIN]


def test_a_call_that_can_be_made_once_is_prepared_anew() -> None:
    made: list[str] = []

    def again() -> Callable[[], object]:
        return lambda: made.append("again")

    gpu = FakeGpu(host=4e-3)
    clock_on(gpu).seconds(lambda: made.append("first"), "slow", again)
    assert made == ["first", "again"]


def test_a_call_that_waits_for_the_device_is_not_made_over_and_over() -> None:
    gpu = FakeGpu(host=1e-3, waits=True)
    clock = clock_on(gpu)
    for _ in range(3):
        assert clock.seconds(nothing, "waiting") == pytest.approx(2e-3)
    assert len(gpu.spins) == 3 + 1 + 1


def test_no_spin_is_longer_than_is_bearable() -> None:
    gpu = FakeGpu(host=10.0)
    clock_on(gpu).seconds(nothing)
    assert max(gpu.spins) == LONGEST_SPIN

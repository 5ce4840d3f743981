"""One bucket's candidates: their results are compared, and no launch finds its inputs cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import candidates
from benchmarks.candidates import Bench, Trial, measured
from benchmarks.clock import Run
from benchmarks.measure import DeviceLost

pytest.importorskip("triton", reason="triton is not installed")

CPU = torch.device("cpu")
SLOW, FAST, FASTER = ({"block": block} for block in (64, 32, 16))


@dataclass
class Sum:
    """Candidates add numbers in different orders, and take as many milliseconds as their block."""

    compute: Callable[[dict[str, int]], Tensor] = lambda c: summed(c["block"])
    kernel: str = "sum"
    bucket: str = "fp32"
    candidates: list[dict[str, int]] = field(default_factory=lambda: [SLOW, FAST, FASTER])
    rank: int = 0
    digest: str = "0123456789abcdef"

    def codes(self, configuration: dict[str, int] | None) -> list[str]:
        return []

    def build(
        self, configuration: dict[str, int] | None, only: str | None = None
    ) -> dict[str, int]:
        return {}

    def launcher(self) -> Callable[[dict[str, int]], object]:
        return lambda configuration: (self.compute(configuration), None, configuration["block"])


NUMBERS = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))


def summed(block: int) -> Tensor:
    return torch.stack([part.sum(1) for part in NUMBERS.split(block, 1)]).sum(0)


class Clock:
    """A clock with the cost of a launch by its result; it records the names of the calls."""

    cache_bytes = 1024

    def __init__(self) -> None:
        self.names: list[str] = []
        self.before: Callable[[], object] = lambda: None
        self.attempts = 1

    def seconds(self, run: Run, name: str = "", again: Callable[[], Run] | None = None) -> float:
        assert again is not None
        self.names.append(name)
        for attempt in range(self.attempts):
            if attempt:
                run = again()
            self.before()
            result: Any = run()
        return float(result[-1]) / 1e3


def bench(
    clock: Clock | None = None, on_trial: Callable[[Trial], None] = lambda trial: None
) -> Bench:
    return Bench(clock or Clock(), CPU, lambda: False, on_trial)


def test_the_fastest_of_those_that_agree_is_chosen() -> None:
    entry, notes = measured(Sum(), [SLOW, FAST, FASTER], bench())
    assert not torch.equal(summed(64), summed(16)), "they round differently"
    assert notes == []
    assert entry is not None
    assert (entry["configuration"], entry["left_out"]) == (FASTER, 0)


def wrong(at: dict[str, int]) -> Callable[[dict[str, int]], Tensor]:
    """One candidate forgets the last of its numbers."""

    def compute(configuration: dict[str, int]) -> Tensor:
        total = summed(configuration["block"])
        return total - NUMBERS[:, -1] if configuration == at else total

    return compute


def test_a_fast_candidate_that_computes_something_else_is_left_out_and_told() -> None:
    entry, notes = measured(Sum(wrong(FASTER)), [SLOW, FAST, FASTER], bench())
    assert entry is not None
    assert (entry["configuration"], entry["left_out"]) == (FAST, 1)
    (note,) = notes
    assert note.startswith(f"{FASTER}: differs from the result of {SLOW}: ")
    assert note.endswith(" of 64 elements of result 0")


def test_without_the_default_the_first_that_runs_is_the_measure_of_the_others() -> None:
    # The default is rejected, then it does not run.
    entry, notes = measured(Sum(wrong(FASTER)), [FAST, FASTER], bench())
    assert entry is not None
    assert (entry["configuration"], entry["default_ms"]) == (FAST, None)
    assert notes[0].startswith(f"{FASTER}: differs from the result of {FAST}: ")

    def fails(configuration: dict[str, int]) -> Tensor:
        if configuration == SLOW:
            raise torch.OutOfMemoryError("2 GiB more")
        return wrong(FASTER)(configuration)

    entry, notes = measured(Sum(fails), [SLOW, FAST, FASTER], bench())
    assert entry is not None
    assert entry["configuration"] == FAST
    assert notes[0] == f"{SLOW}: OutOfMemoryError: 2 GiB more"
    assert notes[1].startswith(f"{FASTER}: differs from the result of {FAST}: ")


def test_what_one_candidate_left_in_the_output_is_not_another_one_s_result() -> None:
    out = torch.empty(64)

    def compute(configuration: dict[str, int]) -> Tensor:
        if configuration != FASTER:
            out.copy_(summed(configuration["block"]))
        return out

    entry, notes = measured(Sum(compute), [SLOW, FAST, FASTER], bench())
    assert entry is not None
    assert entry["configuration"] == FAST
    assert notes == [f"{FASTER}: differs from the result of {SLOW}: 64 of 64 elements of result 0"]


def test_before_every_timed_launch_other_memory_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than the cache holds, also where the clock makes a call again."""
    written: list[int] = []
    zero = Tensor.zero_

    def counted(tensor: Tensor) -> Tensor:
        written.append(tensor.nbytes)
        return zero(tensor)

    monkeypatch.setattr(Tensor, "zero_", counted)
    clock = Clock()
    clock.attempts = 2

    def before() -> None:
        assert sum(written) >= 2 * clock.cache_bytes, "the launch finds its inputs in the cache"
        written.clear()

    clock.before = before
    entry, notes = measured(Sum(), [SLOW, FAST], bench(clock))
    assert notes == []
    assert entry is not None


def test_every_candidate_is_another_kind_of_call_to_the_clock() -> None:
    """Which keeps how long each kind takes to be launched."""
    clock = Clock()
    for tunable in (Sum(), Sum(bucket="bf16"), Sum(kernel="product")):
        measured(tunable, [SLOW, FAST], bench(clock))
    assert Counter(clock.names) == {
        f"{name} {i}": candidates.ROUNDS
        for name in ("sum fp32", "sum bf16", "product fp32")
        for i in (0, 1)
    }


def test_what_is_launched_next_is_told_before() -> None:
    events: list[object] = []

    def launched(configuration: dict[str, int]) -> Tensor:
        events.append("launch")
        return summed(configuration["block"])

    clock = Clock()
    clock.before = lambda: events.append("timed")
    measured(Sum(launched), [FAST], bench(clock, events.append))
    trials = [Trial("sum", "fp32", "0123456789abcdef", c) for c in (None, FAST)]
    once, timed = [trials[1], "launch"], ["timed", "launch"]
    rounds = candidates.ROUNDS - candidates.FIRST_ROUNDS
    assert events == [
        trials[0], *once,
        trials[1], *timed * candidates.FIRST_ROUNDS,
        *[trials[1], *timed] * rounds,
    ]  # fmt: skip


@pytest.mark.parametrize("at", [1, 5, 2 * 4 + 1], ids=["first run", "own rounds", "in turn"])
def test_after_an_error_that_the_device_does_not_survive_nothing_is_launched(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[dict[str, int]] = []
    trials: list[Trial] = []

    def compute(configuration: dict[str, int]) -> Tensor:
        launches.append(configuration)
        if len(launches) >= at:
            raise RuntimeError("an illegal memory access was encountered\nin a kernel")
        return summed(configuration["block"])

    monkeypatch.setattr(candidates, "is_lost", lambda device: len(launches) >= at)
    with pytest.raises(DeviceLost, match=r"^RuntimeError: an illegal memory .* encountered$"):
        measured(Sum(compute), [SLOW, FAST], bench(None, trials.append))
    assert len(launches) == at
    assert trials[-1].configuration == launches[-1]


@pytest.mark.parametrize("at", [0, 2], ids=["inputs", "second candidate"])
def test_an_error_that_comes_after_a_launch_has_returned_is_its_own(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[torch.device] = []

    def synchronize(device: torch.device) -> None:
        waits.append(device)
        if len(waits) > at:
            raise RuntimeError("an illegal memory access was encountered")

    trials: list[Trial] = []
    asynchronous = bench(None, trials.append)
    asynchronous._device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(DeviceLost):
        measured(Sum(), [SLOW, FAST], asynchronous)
    assert [trial.configuration for trial in trials] == [None, SLOW, FAST][: at + 1]

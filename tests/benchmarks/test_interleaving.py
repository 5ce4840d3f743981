"""Contenders take turns in shuffled rounds, and inputs rotate."""

from __future__ import annotations

import itertools

import pytest
import torch
from fake_time import FakeClock, Ticking

from benchmarks.case import Case, Family
from benchmarks.interleave import Limits, Step, input_sets, interleaved, order, step_of


def test_every_round_has_everyone_once_and_nobody_a_fixed_predecessor() -> None:
    rounds = [order("abcd", i) for i in range(40)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    pairs = {pair for names in rounds for pair in itertools.pairwise(names)}
    assert len(pairs) == 12
    assert {names[0] for names in rounds} == set("abcd")
    assert rounds == [order("abcd", i) for i in range(40)]


def test_contenders_alternate_and_sets_rotate() -> None:
    ran: list[tuple[str, int]] = []

    def step(name: str) -> Step:
        return lambda i: lambda: ran.append((name, i))

    steps = {name: step(name) for name in "ab"}
    samples = interleaved(steps, FakeClock(), Limits(0.0, min_rounds=4), 3, Ticking())
    assert [name for name, _ in ran] == [name for i in range(4) for name in order("ab", i)]
    assert [i for _, i in ran] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert {name: len(s.seconds) for name, s in samples.items()} == {"a": 4, "b": 4}


def test_time_ends_the_rounds_but_not_before_the_least_number() -> None:
    steps: dict[str, Step] = {"a": lambda i: lambda: None}
    few = interleaved(steps, FakeClock(), Limits(0.0, min_rounds=3), 1, Ticking(1.0))
    assert len(few["a"].seconds) == 3
    some = interleaved(steps, FakeClock(), Limits(10.0, min_rounds=3), 1, Ticking(1.0))
    assert 3 < len(some["a"].seconds) < 15
    most = interleaved(steps, FakeClock(), Limits(1e9, 3, max_rounds=20), 1, Ticking(1.0))
    assert len(most["a"].seconds) == 20


def test_what_prepares_is_not_timed(family: Family) -> None:
    log: list[str] = []
    case = Case(family, {"N": 4}, "fp32", "backward")

    def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        log.append("forward")
        return 3 * inputs["x"]

    class Clock(FakeClock):
        def seconds(self, timed, *others):  # type: ignore[no-untyped-def]
            log.append("start")
            return super().seconds(timed)

    step = step_of(case, run, [case.inputs(0)], (torch.ones(4),))
    interleaved({"a": step}, Clock(), Limits(0.0, min_rounds=2), 1)
    assert log == ["forward", "start", "forward", "start"]


@pytest.mark.parametrize(
    ("pass_", "expected"), [("forward", None), ("backward", 3.0), ("full", 3.0)]
)
def test_passes_do_what_they_say(family: Family, pass_: str, expected: float | None) -> None:
    case = Case(family, {"N": 4}, "fp32", pass_)
    step = step_of(case, lambda inputs: 3 * inputs["x"], [case.inputs(0)], (torch.ones(4),))
    result = step(0)()
    if expected is None:
        assert isinstance(result, torch.Tensor)
        assert not result.requires_grad
    else:
        assert isinstance(result, tuple)
        torch.testing.assert_close(result[0], torch.full((4,), expected))


def test_sets_exceed_the_cache_and_differ(family: Family) -> None:
    sets = input_sets(Case(family, {"N": 64}, "fp32", "forward"), FakeClock(), 1 << 30)
    assert sum(s["x"].nbytes for s in sets) > 2 * FakeClock.cache_bytes
    assert not torch.equal(sets[0]["x"], sets[1]["x"])
    tight = input_sets(Case(family, {"N": 64}, "fp32", "forward"), FakeClock(), 3 * 256)
    assert len(tight) == 3

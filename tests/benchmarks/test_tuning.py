"""The tuning table: spilling and failing candidates are left out, the fastest of the rest wins."""

from __future__ import annotations

import concurrent.futures

import pytest
from fake_time import FakeClock, Ticking

from benchmarks import tuning

MODULE = "tunable_kernels"


def milliseconds(result: object) -> float:
    assert isinstance(result, float)
    return result / 1e3


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in place of processes, whose start takes seconds."""

    def pool(workers: int, mp_context: object) -> concurrent.futures.Executor:
        return concurrent.futures.ThreadPoolExecutor(workers)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", pool)


@pytest.mark.usefixtures("in_this_process")
def test_the_fastest_candidate_without_spills_is_chosen() -> None:
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    assert set(found["entries"]["attention_forward"]) == {"bf16/D=32", "bf16/D=64"}
    assert found["entries"]["attention_forward"]["bf16/D=32"] == {
        "configuration": {"block": 32},
        "median_ms": pytest.approx(2.0),
        "default_ms": pytest.approx(3.0),
        "candidates": 4,
        "left_out": 2,
    }
    notes = "\n".join(found["notes"])
    assert "{'block': 64}: 8 spills" in notes
    assert "{'block': 128}: RuntimeError: out of shared memory" in notes


@pytest.mark.usefixtures("in_this_process")
def test_what_there_is_no_time_for_is_told() -> None:
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 1.5, now=Ticking(1.0))
    assert list(found["entries"]["attention_forward"]) == ["bf16/D=32"]
    assert found["notes"][-1] == "attention_forward bf16/D=64: no time left"


def test_a_candidate_that_is_not_compiled_in_time_is_left_out() -> None:
    jobs = [(MODULE, 0, 90, {"block": 16})]
    (outcome,) = tuning.build_all(jobs, 0.0).values()
    assert outcome == "not compiled in time"


@pytest.mark.slow
def test_candidates_are_built_in_processes_of_their_own() -> None:
    jobs = [(MODULE, 0, 90, {"block": block}) for block in (16, 64, 128)]
    first, second, third = tuning.build_all(jobs, 120).values()
    assert first == {"spills": 0, "shared": 90}
    assert second == {"spills": 8, "shared": 90}
    assert third == "RuntimeError: out of shared memory"

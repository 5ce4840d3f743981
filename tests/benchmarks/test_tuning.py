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
    entries = found["entries"]["attention_forward"]
    assert set(entries) == {"bf16/D=32", "bf16/D=64", "bf16/D=128"}
    assert entries["bf16/D=32"] == {
        "configuration": {"block": 32},
        "median_ms": pytest.approx(2.0),
        "default_ms": pytest.approx(3.0),
        "candidates": 4,
        "left_out": 2,
    }
    notes = "\n".join(found["notes"])
    assert "bf16/D=32 {'block': 64}: 8 spills" in notes
    assert "bf16/D=32 {'block': 128}: RuntimeError: out of shared memory" in notes


@pytest.mark.usefixtures("in_this_process")
def test_what_compiles_alike_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build_one = tuning.build_one

    def counting(job: tuning.Job) -> dict[str, int]:
        built.append(job.candidate["block"])
        return build_one(job)

    monkeypatch.setattr(tuning, "build_one", counting)
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    assert sorted(built) == sorted(2 * [16, 32, 64, 128])
    # What was refused is told once as well.
    assert not any("D=128" in note for note in found["notes"])
    assert found["entries"]["attention_forward"]["bf16/D=128"]["left_out"] == 2


@pytest.mark.usefixtures("in_this_process")
def test_what_there_is_no_time_for_is_told_and_matters_least() -> None:
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 1.5, now=Ticking(1.0))
    assert list(found["entries"]["attention_forward"]) == ["bf16/D=32"]
    expected = "no time left for attention_forward bf16/D=64, attention_forward bf16/D=128"
    assert found["notes"][-1] == expected


def test_a_candidate_that_is_not_compiled_in_time_is_left_out() -> None:
    jobs = [tuning.Job(MODULE, 0, 90, {"block": 16})]
    (outcome,) = tuning.build_all(jobs, 0.0).values()
    assert outcome == "not compiled in time"


def test_a_kernel_of_which_nothing_is_compiled_in_time_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = {job.label: tuning.TOO_LATE for e in tuning.entrants([MODULE], 90) for job in e.jobs}
    (headline, *_) = tuning.entrants([MODULE], 90)
    late[headline.jobs[1].label] = {"spills": 0, "shared": 0}  # type: ignore[assignment]
    monkeypatch.setattr(tuning, "build_all", lambda jobs, seconds: late)
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    entry = found["entries"]["attention_forward"]["bf16/D=32"]
    assert entry["configuration"] == {"block": 32}
    assert (entry["default_ms"], entry["left_out"]) == (None, 3)
    assert sum("not compiled in time" in note for note in found["notes"]) == 3
    assert found["notes"][-1].startswith("no time left for attention_forward bf16/D=64")


@pytest.mark.slow
def test_candidates_are_built_in_processes_of_their_own() -> None:
    jobs = [tuning.Job(MODULE, 0, 90, {"block": block}) for block in (16, 64, 128)]
    first, second, third = tuning.build_all(jobs, 120).values()
    assert first == {"spills": 0, "shared": 90}
    assert second == {"spills": 8, "shared": 90}
    assert third == "RuntimeError: out of shared memory"

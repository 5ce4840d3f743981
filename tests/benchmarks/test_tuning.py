"""The tuning table: spilling and failing candidates are left out, the fastest of the rest wins."""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Callable

import pytest
import torch
import tunable_kernels
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
def test_what_there_is_no_time_for_is_told_and_matters_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_all = tuning.build_all
    monkeypatch.setattr(tuning, "build_all", lambda jobs, seconds: build_all(jobs, 10_000))
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 1.5, now=Ticking(1.0))
    assert list(found["entries"]["attention_forward"]) == ["bf16/D=32"]
    expected = "no time left for attention_forward bf16/D=64, attention_forward bf16/D=128"
    assert found["notes"][-1] == expected


class Trouble:
    """Raises out-of-memory errors for some launches, and counts the inputs that are alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: set[tuple[str, int]] = set()
        self.without_inputs: set[str] = set()
        self.alive, self.most_alive, self.made = 0, 0, 0
        monkeypatch.setattr(tunable_kernels.FakeKernel, "launcher", lambda kernel: self.of(kernel))

    def of(self, kernel: tunable_kernels.FakeKernel) -> Callable[[dict[str, int]], object]:
        if kernel.bucket in self.without_inputs:
            raise torch.OutOfMemoryError("17 GiB more\nand a second line")
        self.alive += 1
        self.made += 1
        self.most_alive = max(self.most_alive, self.alive)

        def launch(configuration: dict[str, int]) -> object:
            if (kernel.bucket, configuration["block"]) in self.refused:
                raise torch.OutOfMemoryError("2 GiB more")
            return tunable_kernels.COSTS[configuration["block"]]

        weakref.finalize(launch, self.freed)
        return launch

    def freed(self) -> None:
        self.alive -= 1


@pytest.mark.usefixtures("in_this_process")
def test_a_candidate_that_does_not_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    trouble.refused = {("bf16/D=32", 32), ("bf16/D=64", 16)}
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    entries = found["entries"]["attention_forward"]
    assert entries["bf16/D=32"]["configuration"] == {"block": 16}
    assert entries["bf16/D=32"]["left_out"] == 3
    assert entries["bf16/D=64"]["configuration"] == {"block": 32}
    assert entries["bf16/D=64"]["default_ms"] is None
    assert entries["bf16/D=128"]["left_out"] == 2
    expected = "attention_forward bf16/D=32 {'block': 32}: OutOfMemoryError: 2 GiB more"
    assert expected in found["notes"]


@pytest.mark.usefixtures("in_this_process")
def test_a_kernel_that_cannot_be_tuned_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    trouble.without_inputs = {"bf16/D=32"}
    trouble.refused = {("bf16/D=64", 16), ("bf16/D=64", 32)}
    found = tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    assert set(found["entries"]["attention_forward"]) == {"bf16/D=128"}
    name = "attention_forward bf16"
    assert f"{name}/D=32 is not tuned: OutOfMemoryError: 17 GiB more" in found["notes"]
    assert f"{name}/D=64 is not tuned: no candidate runs" in found["notes"]


@pytest.mark.usefixtures("in_this_process")
def test_an_error_while_timing_loses_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("launch failed")]

    def once_broken(result: object) -> float:
        if errors:
            raise errors.pop()
        return milliseconds(result)

    found = tuning.tune([MODULE], 90, FakeClock(once_broken), 60)
    assert set(found["entries"]["attention_forward"]) == {"bf16/D=64", "bf16/D=128"}
    expected = "attention_forward bf16/D=32 is not tuned: RuntimeError: launch failed"
    assert expected in found["notes"]


@pytest.mark.usefixtures("in_this_process")
def test_inputs_are_those_of_one_kernel_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    assert (trouble.made, trouble.most_alive, trouble.alive) == (3, 1, 0)


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
    first, second, third = tuning.build_all(jobs, 10_000).values()
    assert first == {"spills": 0, "shared": 90}
    assert second == {"spills": 8, "shared": 90}
    assert third == "RuntimeError: out of shared memory"

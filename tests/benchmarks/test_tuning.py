"""The tuning table: spilling and failing candidates are excluded, the fastest other one wins."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tunable_kernels
from fake_time import FakeClock
from tuned_here import tuned_here

from benchmarks import compiling, tuning

MODULE = "tunable_kernels"
NAME = "attention_forward bf16"


def milliseconds(result: object) -> float:
    assert isinstance(result, float)
    return result / 1e3


@pytest.mark.usefixtures("compiled_in_this_process")
def test_the_fastest_candidate_without_spills_is_chosen() -> None:
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    entries = found["entries"]["attention_forward"]
    assert set(entries) == {"bf16/D=32", "bf16/D=64", "bf16/D=128"}
    assert entries["bf16/D=32"] == {
        "configuration": {"block": 32},
        "median_ms": pytest.approx(2.0),
        "default_ms": pytest.approx(3.0),
        "candidates": 4,
        "left_out": 2,
        "source": "0123456789abcdef",
    }
    notes = "\n".join(found["notes"])
    assert "bf16/D=32 {'block': 64}: 8 spills" in notes
    assert "bf16/D=32 {'block': 128}: RuntimeError: out of shared memory" in notes


@pytest.mark.usefixtures("compiled_in_this_process")
def test_what_compiles_alike_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build_one = compiling.build_one

    def counting(job: compiling.Job) -> compiling.Outcome:
        built.append(job.code)
        return build_one(job)

    monkeypatch.setattr(compiling, "build_one", counting)
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    # The lowest rank first, and a bucket's candidates before its inputs.
    blocks = (16, 32, 64, 128, "inputs")
    assert sorted(built) == sorted(f"D={d} {block}" for d in (32, 64) for block in blocks)
    assert built.index("D=32 16") < built.index("D=64 16")
    # A rejected code is reported once as well.
    assert not any("D=128" in note for note in found["notes"])
    assert found["entries"]["attention_forward"]["bf16/D=128"]["left_out"] == 2


@pytest.mark.usefixtures("compiled_in_this_process")
def test_ranks_and_entries_that_are_known_already_leave_buckets_out() -> None:
    entry = {"configuration": {"block": 16}, "source": "0123456789abcdef"}
    # One of another source is measured again.
    kept = {"attention_forward": {"bf16/D=64": entry, "bf16/D=32": {**entry, "source": "other"}}}
    made: list[tuple[str, str, Any]] = []
    found = tuned_here(
        [MODULE], 90, FakeClock(milliseconds), 60,
        first_rank=2, known=kept, on_entry=lambda *entry: made.append(entry),
    )  # fmt: skip
    entries = found["entries"]["attention_forward"]
    assert set(entries) == {"bf16/D=32"}
    assert made == [("attention_forward", "bf16/D=32", entries["bf16/D=32"])]
    assert kept["attention_forward"]["bf16/D=32"]["source"] == "other", "what was given changed"


@pytest.mark.usefixtures("compiled_in_this_process")
def test_an_entry_is_given_before_the_next_bucket_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    made: list[str] = []
    launcher = tunable_kernels.FakeKernel.launcher

    def dies_at_the_second(kernel: tunable_kernels.FakeKernel) -> Any:
        if kernel.bucket == "bf16/D=64":
            raise Killed
        return launcher(kernel)

    monkeypatch.setattr(tunable_kernels.FakeKernel, "launcher", dies_at_the_second)
    with pytest.raises(Killed):
        tuning.tune(
            [MODULE], 90, FakeClock(milliseconds), 60, on_entry=lambda k, b, e: made.append(b)
        )
    assert made == ["bf16/D=32"]


@pytest.mark.usefixtures("compiled_in_this_process")
def test_after_a_bucket_nothing_is_tried_any_more() -> None:
    """A process that ends while the next bucket is compiled was not ended by a candidate."""
    told: list[Any] = []
    tuning.tune(
        [MODULE], 90, FakeClock(milliseconds), 60, on_entry=lambda *entry: told.append("entry"),
        on_trial=lambda trial: told.append(trial and trial.bucket),
    )  # fmt: skip
    ends = [i for i, what in enumerate(told) if what is None]
    assert [told[i - 1] for i in ends] == ["bf16/D=32", "bf16/D=64", "bf16/D=128"]
    assert [told[i + 1] for i in ends] == ["entry"] * 3


class Held:
    """Replaces a compiling process: some codes wait until they are released."""

    held: set[str] = set()  # noqa: RUF012

    def __init__(self, multiprocessors: int | None) -> None:
        self.killed = False

    def build(self, job: compiling.Job) -> compiling.Outcome:
        while job.code in Held.held and not self.killed:
            time.sleep(1e-3)
        return compiling.build_one(job)

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(compiling, "Worker", Held)
    monkeypatch.setattr(compiling, "cores", lambda: 3)
    Held.held = set()
    return Held.held


def test_a_bucket_is_measured_while_those_before_it_are_compiled(held: set[str]) -> None:
    held.add("D=32 32")
    made: list[str] = []

    def on_entry(kernel: str, bucket: str, entry: object) -> None:
        made.append(bucket)
        if len(made) == 2:
            held.clear()

    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60, on_entry=on_entry)
    assert made == ["bf16/D=64", "bf16/D=128", "bf16/D=32"]
    assert found["entries"]["attention_forward"]["bf16/D=32"]["left_out"] == 2


def test_what_is_not_compiled_in_time_is_named(held: set[str]) -> None:
    held.update({"D=32 32", "D=64 inputs"})
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 0.3)
    assert found["entries"] == {}
    assert found["notes"] == [f"not compiled in time: {NAME}/D=32, {NAME}/D=64, {NAME}/D=128"]


class TimeThatCosts:
    """Launching takes a hundred times its cost of fake time, and nothing else takes any.

    So there is enough time to wait for compilations, which take real time.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self.cache_bytes = 1024

    def seconds(self, run: Callable[[], object], *others: object) -> float:
        cost = 100 * milliseconds(run())
        self.time += cost
        return cost

    def now(self) -> float:
        return self.time


def tuned_within(seconds: float) -> dict[str, Any]:
    """The first bucket's candidates take 0.9 and 0.6 s when timed alone, then 22 rounds."""
    clock = TimeThatCosts()
    return tuned_here([MODULE], 90, clock, seconds, first_rank=0, now=clock.now)


@pytest.mark.usefixtures("compiled_in_this_process")
def test_the_clock_is_read_between_candidates() -> None:
    assert not [note for note in tuned_within(100.0)["notes"] if "time was over" in note]
    # After the rounds of the default alone.
    found = tuned_within(0.8)
    entry = found["entries"]["attention_forward"]["bf16/D=32"]
    assert (entry["configuration"], entry["left_out"]) == ({"block": 16}, 3)
    said = f"{NAME}/D=32 time was over: 1 of 2 candidates, 3 of 25 rounds"
    assert found["notes"][-1] == said
    # Between two rounds.
    found = tuned_within(2.1)
    entry = found["entries"]["attention_forward"]["bf16/D=32"]
    assert (entry["configuration"], entry["left_out"]) == ({"block": 32}, 2)
    said = f"{NAME}/D=32 time was over: 2 of 2 candidates, 4 of 25 rounds"
    assert found["notes"][-1] == said


@pytest.mark.usefixtures("compiled_in_this_process")
def test_a_bucket_whose_default_was_not_timed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble = Trouble(monkeypatch)
    trouble.refused = {("bf16/D=32", 16)}
    found = tuned_within(0.7)
    assert found["entries"] == {}
    assert found["notes"][-1] == (
        f"{NAME}/D=32 is not tuned: time was over before the default "
        "(2 of 2 candidates, 4 of 25 rounds)"
    )


@pytest.mark.usefixtures("compiled_in_this_process")
def test_what_there_is_no_time_for_is_told_and_matters_least() -> None:
    clock = TimeThatCosts()
    found = tuned_here([MODULE], 90, clock, 12.49, now=clock.now)
    assert list(found["entries"]["attention_forward"]) == ["bf16/D=32"]
    assert found["notes"][-1] == (
        f"not measured, because no time was left: {NAME}/D=64, {NAME}/D=128"
    )


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


@pytest.mark.usefixtures("compiled_in_this_process")
def test_a_candidate_that_does_not_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    trouble.refused = {("bf16/D=32", 32), ("bf16/D=64", 16)}
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    entries = found["entries"]["attention_forward"]
    assert entries["bf16/D=32"]["configuration"] == {"block": 16}
    assert entries["bf16/D=32"]["left_out"] == 3
    assert entries["bf16/D=64"]["configuration"] == {"block": 32}
    assert entries["bf16/D=64"]["default_ms"] is None
    assert entries["bf16/D=128"]["left_out"] == 2
    expected = "attention_forward bf16/D=32 {'block': 32}: OutOfMemoryError: 2 GiB more"
    assert expected in found["notes"]


@pytest.mark.usefixtures("compiled_in_this_process")
def test_a_kernel_that_cannot_be_tuned_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    trouble.without_inputs = {"bf16/D=32"}
    trouble.refused = {("bf16/D=64", 16), ("bf16/D=64", 32)}
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    assert set(found["entries"]["attention_forward"]) == {"bf16/D=128"}
    name = "attention_forward bf16"
    assert f"{name}/D=32 is not tuned: OutOfMemoryError: 17 GiB more" in found["notes"]
    assert f"{name}/D=64 is not tuned: no candidate runs" in found["notes"]


@pytest.mark.usefixtures("compiled_in_this_process")
@pytest.mark.parametrize(
    ("at", "lost"), [(1, "{'block': 16}"), (7, "is not tuned")], ids=["first rounds", "in turn"]
)
def test_an_error_while_timing_loses_no_more_than_one_kernel(at: int, lost: str) -> None:
    calls = itertools.count(1)

    def once_broken(result: object) -> float:
        if next(calls) == at:
            raise RuntimeError("launch failed")
        return milliseconds(result)

    found = tuned_here([MODULE], 90, FakeClock(once_broken), 60)
    assert {"bf16/D=64", "bf16/D=128"} <= set(found["entries"]["attention_forward"])
    assert f"{NAME}/D=32 {lost}: RuntimeError: launch failed" in found["notes"]


@pytest.mark.usefixtures("compiled_in_this_process")
def test_a_kernel_without_inputs_on_meta_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = tunable_kernels.FakeKernel.codes

    def fails_once(kernel: tunable_kernels.FakeKernel, configuration: Any) -> list[str]:
        if kernel.bucket == "bf16/D=32":
            raise ValueError("no such shape")
        return codes(kernel, configuration)

    monkeypatch.setattr(tunable_kernels.FakeKernel, "codes", fails_once)
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    assert f"{NAME}/D=32 is not tuned: ValueError: no such shape" in found["notes"]
    assert set(found["entries"]["attention_forward"]) == {"bf16/D=64", "bf16/D=128"}


@pytest.mark.usefixtures("compiled_in_this_process")
def test_inputs_are_those_of_one_kernel_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    tuning.tune([MODULE], 90, FakeClock(milliseconds), 60)
    assert (trouble.made, trouble.most_alive, trouble.alive) == (3, 1, 0)


@pytest.mark.usefixtures("compiled_in_this_process")
def test_if_every_candidate_is_rejected_no_inputs_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble(monkeypatch)
    monkeypatch.setattr(tunable_kernels.FakeKernel, "build", lambda *a: {"spills": 8, "shared": 0})
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60)
    assert found["entries"] == {}
    assert f"{NAME}/D=128 is not tuned: every candidate is rejected" in found["notes"]
    assert trouble.made == 0


@pytest.mark.usefixtures("compiled_in_this_process")
def test_what_is_compiled_while_measuring_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a launch on the GPU that was not compiled in advance."""
    triton = pytest.importorskip("triton")

    def launcher(kernel: object) -> Callable[[dict[str, int]], object]:
        def launch(configuration: dict[str, int]) -> float:
            if configuration["block"] not in launched:
                launched.add(configuration["block"])
                source = SimpleNamespace(name="forward_kernel")
                triton.knobs.compilation.listener(src=source, cache_hit=False)
            return 1.0

        launched: set[int] = set()
        return launch

    monkeypatch.setattr(tunable_kernels.FakeKernel, "launcher", launcher)
    found = tuned_here([MODULE], 90, FakeClock(milliseconds), 60, first_rank=0)
    note = "compiled again while candidates were measured: forward_kernel 2"
    assert found["notes"][-1] == note


@pytest.mark.slow
def test_candidates_are_built_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One compilation crashes: only its candidate is excluded."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(compiling, "cores", lambda: 1)
    codes = ("any 16", "any 32", "any 64", "any 128")
    with compiling.Compilers(77) as compilers:
        for code, candidate in zip(codes, tunable_kernels.CANDIDATES, strict=True):
            compilers.add(compiling.Job("crashing_kernels", 0, 90, candidate, code))
        assert compilers.wait(lambda: len(compilers.outcomes) == len(codes), 300)
    assert compilers.outcomes == {
        "any 16": {"spills": 0, "shared": 77, "gpus": 0},
        "any 32": "the compiling process died: SIGSEGV",
        "any 64": {"spills": 8, "shared": 90},
        "any 128": "RuntimeError: out of shared memory",
    }


def test_leaving_stops_what_is_being_compiled() -> None:
    jobs = [compiling.Job("crashing_kernels", 0, 90, {"block": 64}, f"any {n}") for n in range(9)]
    with compiling.Compilers() as compilers:
        for job in jobs:
            compilers.add(job)
    assert not any(thread.is_alive() for thread in compilers._threads)
    assert not any(worker._process.is_alive() for worker in compilers._workers)
    assert len(compilers.outcomes) < len(jobs)


@pytest.mark.slow
def test_measuring_a_real_kernel_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two buckets of two candidates, compiled in processes and launched by Triton."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "kernels"))
    from standin_driver import standing_in

    from fastgrow.kernels import tunable

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def launcher(kernel: tunable.Tunable[Any]) -> Callable[[dict[str, int]], object]:
        prepared = kernel.prepare("meta")

        def launch(configuration: dict[str, int]) -> None:
            # Nothing is computed that could be compared.
            prepared(type(kernel.default)(**configuration))

        return launch

    monkeypatch.setattr(tunable.Tunable, "launcher", launcher)
    with standing_in(90) as driver:
        found = tuned_here(["two_norms"], 90, FakeClock(), 300)
    assert found["notes"] == []
    assert {kernel: list(entries) for kernel, entries in found["entries"].items()} == {
        "norm_forward": ["bf16/D=1024"], "norm_backward": ["bf16/D=1024"]
    }  # fmt: skip
    assert {"forward_kernel", "backward_kernel", "sum_kernel"} <= set(driver.launched)

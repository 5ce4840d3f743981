"""`python -m benchmarks gpu`, rehearsed on this CPU: its stages, faults and second calls."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_worker import FAMILIES

from benchmarks import cases, gpu, gpu_result, processes, rehearsal, worker
from benchmarks.case import Family, Inputs, Output
from benchmarks.command import main
from benchmarks.device_tests import BETWEEN_TESTS, TESTS
from benchmarks.gpu import Options, run_gpu
from benchmarks.record import Record
from benchmarks.results import Result, Row, load
from benchmarks.ship import TABLE
from fastgrow import _native
from fastgrow.kernels import tuned
from fastgrow.kernels.tuned import Table

# The original, before a fixture replaces it.
GROW = gpu._Run._grow
BY_NAME = {family.name: family for family in FAMILIES}
SPEEDS = Options(
    minutes=600.0,
    stages=("headline", "rest"),
    against=("eager", "library"),
    rehearse=True,
)


class InThisProcess:
    """Workers without processes; both sides see JSON alone."""

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, work: Any, limit: float, on_answer: Any) -> str:
        work = json.loads(json.dumps(work))
        worker.KINDS[work["work"]](work, lambda **line: on_answer(json.loads(json.dumps(line))))
        return ""


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers measure FAMILIES; nothing is tuned or grown unless a test requests it."""
    monkeypatch.setattr(worker, "families", lambda names: [BY_NAME[name] for name in names])
    monkeypatch.setattr(gpu, "Workers", InThisProcess)
    monkeypatch.setattr(gpu._Run, "_tune", lambda *a, **k: None)
    monkeypatch.setattr(gpu._Run, "_grow", lambda *a, **k: None)


@pytest.fixture
def in_processes(without_processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU machine, with the faults of FAMILIES."""
    script = Path(__file__).with_name("faulty_worker.py")
    monkeypatch.setattr(processes, "WORKER", (str(script),))
    monkeypatch.setattr(gpu, "Workers", processes.Workers)


def run(out: Path, *names: str, **options: Any) -> Result:
    families = [BY_NAME[name] for name in names]
    return run_gpu(out, dataclasses.replace(SPEEDS, families=families, **options))


def ours(result: Result) -> dict[tuple[str, str], str]:
    return {(row.op, row.shape): row.status for row in result.rows if row.role == "ours"}


def cells(out: Path) -> list[str]:
    """Names of the cases that the record has lines about, in order."""
    lines = map(json.loads, (out / gpu.RECORD).read_text().splitlines())
    return [line["cell"] for line in lines if line["kind"] == "cell"]


def test_what_is_found_is_in_the_files(tmp_path: Path) -> None:
    result = run(tmp_path, "sound")
    assert load(tmp_path / "results.json") == result
    assert ours(result) == {("sound", f"N={n}"): "ok" for n in (64, 128, 256)}
    assert all(row.ratio is not None for row in result.rows if row.role == "ours")
    assert rehearsal.NOTE in result.notes
    assert result.environment["device"] == rehearsal.DEVICE
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "record.jsonl", "results.csv", "results.json"
    ]  # fmt: skip


def test_a_second_call_measures_what_is_missing(tmp_path: Path) -> None:
    first = run(tmp_path, "sound")
    assert cells(tmp_path) == [f"sound N={n} fp32 forward" for n in (64, 128, 256)]
    assert run(tmp_path, "sound").rows == first.rows
    assert len(cells(tmp_path)) == 3
    run(tmp_path, "sound", only="N=128", again=True)
    assert cells(tmp_path)[3:] == ["sound N=128 fp32 forward"]
    # As if the last line had been cut off by a kill.
    content = (tmp_path / gpu.RECORD).read_text()
    lines = [line for line in content.splitlines(True) if "N=256" not in line]
    (tmp_path / gpu.RECORD).write_text("".join(lines) + '{"kind": "ce')
    assert ours(run(tmp_path, "sound")) == ours(first)
    assert cells(tmp_path)[-1] == "sound N=256 fp32 forward"


def test_other_code_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "sound")
    monkeypatch.setattr(gpu.code, "digest_of", lambda family: "of other code")
    result = run(tmp_path, "sound")
    assert len(cells(tmp_path)) == 6
    assert len(ours(result)) == 3
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.usefixtures("in_processes")
def test_a_case_that_ends_its_process_ends_nothing_else(tmp_path: Path) -> None:
    result = run(tmp_path, "breaks", "loses", "sound")
    fault = "fastgrow: CUDA error: an illegal memory access was encountered"
    told = {
        "breaks": "its process died of SIGSEGV",
        "loses": f"its process lost the device: {fault}",
    }
    assert ours(result) == {
        (name, f"N={n}"): f"skipped: {told[name]}" if n == 128 and name in told else "ok"
        for name in ("breaks", "loses", "sound")
        for n in (64, 128, 256)
    }
    (note,) = [note for note in result.notes if note.startswith("rest: ")]
    assert note.startswith("rest: 2 of 9 cases are not complete; breaks N=128 fp32 forward ended")
    before = len(cells(tmp_path))
    # Only these cases are tried again.
    run(tmp_path, "breaks", "sound")
    assert cells(tmp_path)[before:] == ["breaks N=128 fp32 forward"]


def test_a_case_that_is_cut_short_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    class CutShort(InThisProcess):
        def run(self, work: Any, limit: float, on_answer: Any) -> str:
            def answer(line: dict[str, Any]) -> None:
                on_answer(line)
                if "N=128" in line.get("start", ""):
                    raise Killed

            try:
                return super().run(work, limit, answer)
            except Killed:
                return f"cut short after {limit:.0f} s"

    monkeypatch.setattr(gpu, "Workers", CutShort)
    result = run(tmp_path, "sound", stages=("rest",))
    assert ours(result) == {("sound", "N=64"): "ok"}
    assert "rest: 2 of 3 cases are not complete" in result.notes


def test_a_worker_that_died_before_its_work_is_followed_by_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[str] = []

    class DiesFirst(InThisProcess):
        def run(self, work: Any, limit: float, on_answer: Any) -> str:
            if work["work"] == "cells" and len(deaths) < most:
                deaths.append("ended with status 1")
                return deaths[-1]
            return super().run(work, limit, on_answer)

    monkeypatch.setattr(gpu, "Workers", DiesFirst)
    most = 100
    run(tmp_path, "sound", stages=("rest",))
    assert (len(deaths), cells(tmp_path)) == (2, [])
    most = 3
    run(tmp_path, "sound", stages=("rest",))
    assert (len(deaths), len(cells(tmp_path))) == (3, 3)


def test_a_run_of_growth_is_known_once_it_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = ["unfinished: killed in its first half", "failed: no step was made", "passed"]
    asked = []

    def grow(work: Any, answer: Any) -> None:
        asked.append(states[len(asked)])
        answer(found={"config": "small", "state": asked[-1]})

    monkeypatch.setitem(worker.KINDS, "growth", grow)
    monkeypatch.setattr(gpu._Run, "_grow", GROW)
    for state in [*states, "passed"]:
        result = run(tmp_path, "sound", stages=("rest",))
        assert f"growth of small, stopped and resumed once: {state}" in result.notes
    assert asked == states


def test_a_worker_is_killed_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import time; print('{\"start\": 1}'); print('{\"cut'); time.sleep(600)"
    monkeypatch.setattr(processes, "WORKER", ("-u", "-c", script))
    answers: list[dict[str, Any]] = []
    with processes.Workers() as workers:
        assert workers.run({}, 3.0, answers.append) == "cut short after 3 s"
    assert answers == [{"start": 1}]


def test_a_row_measured_before_its_kernel_was_tuned_is_measured_again(tmp_path: Path) -> None:
    run(tmp_path, "sound")
    record = Record(tmp_path / gpu.RECORD)
    line = next(line for line in record._lines if "N=128" in line.get("cell", ""))
    bucket = "bf16/D=32/T=4096"
    record.add(line | {"launch": {f"attention_forward {bucket}": None}})
    assert cells(tmp_path)[3:] == ["sound N=128 fp32 forward"]
    run(tmp_path, "sound")
    assert len(cells(tmp_path)) == 4, "nothing was tuned"
    entry = {"configuration": {"num_warps": 8}, "median_ms": 1.0}
    key = line["key"]
    Record(record.path).add({
        "kind": "entry", "key": key, "kernel": "attention_forward", "bucket": bucket,
        "entry": entry,
    })  # fmt: skip
    run(tmp_path, "sound")
    assert cells(tmp_path)[4:] == ["sound N=128 fp32 forward"]
    table = json.loads((tmp_path / TABLE).read_text())
    assert table["entries"] == {"attention_forward": {bucket: entry}}
    assert (table["device"], table["capability"]) == (rehearsal.DEVICE, 90)


@pytest.mark.skipif(not _native.CPU.loaded, reason="the extension is not built")
def test_the_extension_is_timed_for_the_automatic_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (family,) = cases.families(["mean_argmax"])
    monkeypatch.setitem(BY_NAME, family.name, family)
    result = run(tmp_path, family.name, against=("implementation", "eager"))
    table = json.loads((tmp_path / TABLE).read_text())
    times = {row.contender: row.median_ms for row in result.rows}
    assert table["native"] == {
        "mean_argmax": {
            "fp32/forward/N=64": {
                "native_ms": times["fastgrow native"], "other_ms": times["eager"],
                "other": "eager", "source": None,
            }
        }
    }  # fmt: skip
    assert table["entries"] == {}


@pytest.mark.parametrize("default_ms", [1.0, 1.5])
def test_where_the_default_is_the_best_nothing_is_measured_again(
    default_ms: float, tmp_path: Path
) -> None:
    run(tmp_path, "sound")
    record = Record(tmp_path / gpu.RECORD)
    line = next(line for line in record._lines if "N=128" in line.get("cell", ""))
    record.add(line | {"launch": {"a_kernel a_bucket": None}})
    entry = {"configuration": {"num_warps": 8}, "median_ms": 1.0, "default_ms": default_ms}
    record.add({
        "kind": "entry", "key": line["key"], "kernel": "a_kernel", "bucket": "a_bucket",
        "entry": entry,
    })  # fmt: skip
    before = len(cells(tmp_path))
    run(tmp_path, "sound")
    assert len(cells(tmp_path)) - before == (default_ms != 1.0)


def test_a_case_is_told_with_its_own_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with those of the cases before it, and with all of them, chosen before or not."""
    monkeypatch.setattr(tuned, "gpu_name", lambda device: "Fake GPU")
    monkeypatch.setattr(tuned, "shipped", functools.cache(lambda gpu: Table()))

    @tuned.chosen_once
    def choose(key: str) -> dict[str, int]:
        return tuned.measured("a_kernel", key, torch.device("cpu"), dict) or {}

    def call(inputs: Inputs, impl: str | None) -> Output:
        choose("shared")
        choose(f"N={len(inputs['x'])}")
        result: Output = 3 * inputs["x"]
        return result

    sound = dataclasses.replace(BY_NAME["sound"], call=call)
    monkeypatch.setitem(BY_NAME, "sound", sound)
    run(tmp_path, "sound")
    lines = [line for line in Record(tmp_path / gpu.RECORD)._lines if line["kind"] == "cell"]
    assert len(lines) == 3
    for line in lines:
        N = line["cell"].split()[1]
        assert line["launch"] == {"a_kernel shared": None, f"a_kernel {N}": None}


# A second call, a user's mistakes, and what a user had.


def test_what_is_chosen_of_the_tests_is_not_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_gpu_tests(*args: Any, only: str, on_outcome: Any, **kwargs: Any) -> str:
        asked.append(only)
        on_outcome("tests/test_it.py::test_a", "passed", "")
        return "" if only != "nowhere" else "skipped: no test has 'nowhere' in its name"

    monkeypatch.setattr(gpu, "run_gpu_tests", run_gpu_tests)

    def notes(**options: Any) -> list[str]:
        result = run(tmp_path, "sound", stages=("tests",), **options)
        return [note for note in result.notes if note.startswith("tests on the device: ")]

    part = ["tests on the device: unfinished: only a part of the tests was selected, 1 passed"]
    whole = ["tests on the device: passed, 1 passed"]
    assert notes(only="test_a", again=True) == part
    assert notes() == whole
    assert asked == ["test_a", ""]
    # The selected tests run again; the note about all tests is kept.
    assert notes(only="nowhere", again=True) == notes() == whole
    assert asked == ["test_a", "", "nowhere"]


def test_files_of_something_else_are_kept(tmp_path: Path) -> None:
    for name in ("results.json", TABLE, "results-1.json"):
        (tmp_path / name).write_text(f"my {name}")
    (tmp_path / ".results.json.abcdefgh.tmp").write_text("half of a fi")
    run(tmp_path, "sound", only="N=128")
    run(tmp_path, "sound", only="N=128")
    assert load(tmp_path / "results.json").rows
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "record.jsonl", "results-1.json", "results-2.json", "results.csv", "results.json",
        "tuning-1.json",
    ]  # fmt: skip
    kept = [
        (tmp_path / f"{name}.json").read_text() for name in ("results-1", "results-2", "tuning-1")
    ]
    assert kept == ["my results-1.json", "my results.json", f"my {TABLE}"]


def test_a_rehearsal_does_not_replace_a_gpus_results(tmp_path: Path) -> None:
    environment = {"device": "Fake GPU 9000", "capability": "9.0", "driver": "1", "torch": "2"}
    Record(tmp_path / gpu.RECORD).add(
        {"kind": "machine", "key": "Fake GPU", "environment": environment, "ceilings": {}}
    )
    (tmp_path / "results.json").write_text("of the GPU")
    run(tmp_path, "sound", only="N=128")
    assert (tmp_path / "results-1.json").read_text() == "of the GPU"


def test_a_record_of_another_version_ends_no_run(tmp_path: Path) -> None:
    result = run(tmp_path, "sound")
    content = (tmp_path / gpu.RECORD).read_text()
    (tmp_path / gpu.RECORD).write_text(content.replace('"withheld"', '"held_back"'))
    again = run(tmp_path, "sound")
    assert ours(again) == ours(result)
    note = "3 lines of the record are damaged or from another version and not used"
    assert note in again.notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "0.001"], "the time limit is --minutes 0.001, of which 8 s are reserved"),
        (["--minutes", "some"], "expected a number above 0, got some"),
        (["--substrate", "/nowhere"], "--substrate: no such folder: /nowhere"),
        (["--stage", "headline", "--only", "naught"], "no case has 'naught' in its name"),
        (["--out", __file__], "expected a folder"),
        (["--out", f"{__file__}/out"], "test_gpu_command.py/out: Not a directory"),
    ],
)
def test_a_mistake_is_one_clear_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OutOfTime(InThisProcess):
        def run(self, work: Any, limit: float, on_answer: Any) -> str:
            return f"cut short after {limit:.0f} s"

    monkeypatch.setattr(gpu, "Workers", OutOfTime)
    try:
        status = main(["gpu", "--rehearse", "--out", str(tmp_path), *options])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status in (1, 2)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_run_says_where_its_results_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run_gpu", interrupted)
    assert main(["gpu", "--rehearse", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        f"python -m benchmarks: stopped; the results so far are in {tmp_path}\n"
    )


def test_a_worker_is_not_told_of_ctrl_c_and_ends_where_its_parent_is_gone() -> None:
    script = (
        "import os; from benchmarks.processes import die_with_parent; die_with_parent(); "
        "print(os.getpgid(0) == os.getpid())"
    )

    def output_of(environment: dict[str, str]) -> str:
        bonds = processes.bound()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=gpu.ROOT, capture_output=True, text=True,
            check=False, **bonds | {"env": bonds["env"] | environment},
        )  # fmt: skip
        return done.stdout

    assert output_of({}) == "True\n"
    if sys.platform == "linux":
        assert output_of({processes.PARENT: "1"}) == ""


# The tests' outcomes, and what they withhold.

GPU_TESTS = """
import os
import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.gpu_smoke]

def test_good():
    pass

def test_sound():
    assert not os.path.exists(__file__ + ".bad"), "off by one"
"""


@pytest.mark.slow
def test_failed_tests_withhold_ratios_and_run_again(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_device.py").write_text(GPU_TESTS)
    bad = tests / "test_device.py.bad"
    bad.touch()
    out = tmp_path / "out"
    stages = ("tests", "rest")
    result = run(out, "sound", stages=stages, tests=tests)
    assert "tests on the device: failed, 1 passed, 1 failed" in result.notes
    (failed,) = [note for note in result.notes if note.startswith("failed tests: ")]
    assert failed.endswith("test_device.py::test_sound (AssertionError: off by one)")
    assert {row.withheld for row in result.rows if row.role == "ours"} == {
        "tests on the device failed"
    }
    bad.unlink()
    again = run(out, "sound", stages=stages, tests=tests)
    assert "tests on the device: passed, 2 passed" in again.notes
    assert all(row.ratio for row in again.rows if row.role == "ours")


def row(op: str) -> Row:
    return Row(op, "N=1", "bf16", "full", "fastgrow", "ours", "ok", ratio=2.0)


MEASURED = [family.name for family in gpu.FAMILIES]


def withheld(*failures: str) -> set[str]:
    """The measured operations that have no ratio."""
    tests = {"state": "failed", "failures": list(failures)}
    found = gpu_result.withheld_where_red([row(op) for op in MEASURED], tests)
    return {row.op for row in found if row.ratio is None}


INTERPRETED = "tests/kernels/interpreted"


@pytest.mark.parametrize(
    ("file", "bases"),
    [
        ("test_norm_kernels.py", {"layer_norm", "rms_norm"}),
        ("test_linear_lse_kernels.py", {"linear_cross_entropy", "linear_lse_gather", "linear_kl"}),
        ("test_lora_kernels.py", {"lora_linear"}),
        ("test_decode_kernels.py", {"attention"}),
        ("test_mlp_kernels.py", {"mlp"}),
        ("test_embedding_kernels.py", {"embedding"}),
    ],
)
def test_a_file_of_tests_withholds_what_it_is_about(file: str, bases: set[str]) -> None:
    expected = {op for op in MEASURED if op.split("-")[0] in {*bases, "growth_step"}}
    red_attention = f"{INTERPRETED}/test_attention_kernels.py::test_it"
    assert withheld(f"{INTERPRETED}/{file}::test_it[case]") == expected
    assert withheld(red_attention, f"{INTERPRETED}/{file}::test_it") == (
        expected | {"attention", "attention-decode"}
    )


def test_one_failure_that_names_nothing_withholds_everything() -> None:
    named = f"{INTERPRETED}/test_attention_kernels.py::test_it"
    assert withheld(named, f"{INTERPRETED}/test_kernels_in_models.py::test_it") == set(MEASURED)
    assert withheld(named, BETWEEN_TESTS) == set(MEASURED)
    by_name = withheld(f"{INTERPRETED}/test_launches_on_gpu.py::test_it[embedding]")
    assert by_name == {"embedding", "embedding-bits", "embedding-codes", "growth_step"}


def test_a_run_of_growth_withholds_the_step_of_growth() -> None:
    file = "tests/gpu/test_growing.py"
    assert (TESTS.parent / file).is_file()
    assert withheld(f"{file}::test_losses_are_the_cpu_s[cuda]") == {"growth_step"}


def test_the_files_that_stand_for_operations_exist() -> None:
    for file, bases in gpu_result.OPERATIONS.items():
        assert (TESTS / "kernels" / "interpreted" / file).is_file()
        assert set(bases) <= set(MEASURED)


# Stages.


def test_the_headline_cases_are_those_of_the_issue_and_nothing_is_twice(family: Family) -> None:
    from benchmarks.stages import headline_cases, other_cases

    first = headline_cases(gpu.FAMILIES, "cuda", "gpu", "bf16")
    rest = other_cases(gpu.FAMILIES, "cuda", "gpu", "bf16", first)
    names = [case.name for case in (*first, *rest)]
    assert (
        len(names)
        == len(set(names))
        == sum(len(f.grids["gpu"]) * len(f.passes) for f in gpu.FAMILIES)
    )
    assert {case.family.op for case in first} >= {
        "growth_step", "linear_cross_entropy", "layer_norm", "rms_norm", "attention", "mlp",
        "logit_mean", "mean_cross_entropy",
    }  # fmt: skip
    dims = {(c.shape["D"], c.pass_) for c in first if c.family.name == "attention"}
    assert dims == {(D, p) for D in (32, 128) for p in ("forward", "backward")}
    assert len({case.family.name for case in rest}) == len(
        [f for f in gpu.FAMILIES if f.name not in ("growth_step",)]
    ) + 1  # fmt: skip


def test_stages_of_nine_minutes_leave_time_for_the_rest() -> None:
    from benchmarks.stages import GROWTH_SECONDS, STAGES, WHOLE

    timed = [seconds for stage, seconds in STAGES.items() if stage != "rest"]
    assert sum(timed) + GROWTH_SECONDS + 30 < 60 * WHOLE
    assert list(STAGES)[-1] == "rest"


def test_without_a_gpu_it_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no CUDA GPU is available" in captured.err
    assert not (tmp_path / "out").exists()

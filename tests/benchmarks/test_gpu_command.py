"""`python -m benchmarks gpu`: its parts, what it writes, and what it withholds, on a fake GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, tuning
from benchmarks.case import Family
from benchmarks.command import main
from benchmarks.machine import Machine
from benchmarks.results import Result, load, save

ENTRY = {"configuration": {"block": 32}, "median_ms": 1.0, "default_ms": 1.0}
ENTRIES = {"attention_forward": {"bf16/D=32": ENTRY}}


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the tests on the device are taken to say; nothing is compiled or tuned."""
    said: dict[str, Any] = {"state": "passed", "passed": 12, "failures": []}
    monkeypatch.setattr(gpu, "run_gpu_tests", lambda seconds: dict(said))
    monkeypatch.setattr(tuning, "kernel_modules", lambda: ["kernels"])
    monkeypatch.setattr(tuning, "tune", lambda *a: {"entries": ENTRIES, "notes": []})
    monkeypatch.setattr(gpu, "AGAINST", ("implementation", "eager", "library"))
    return said


def run(machine: Machine, family: Family, out: Path) -> Result:
    return gpu.run_gpu(machine, out, [family], grid="tiny")


def ours(result: Result) -> list[Any]:
    return [row for row in result.rows if row.role == "ours"]


@pytest.mark.usefixtures("outcome")
def test_it_measures_tunes_and_writes(machine: Machine, family: Family, tmp_path: Path) -> None:
    result = run(machine, family, tmp_path)
    save(result, tmp_path)
    assert load(tmp_path / "results.json") == result
    assert [row.pass_ for row in ours(result)] == ["full", "backward", "forward"]
    assert all(row.dtype == "bf16" and row.ratio is not None for row in ours(result))
    assert result.ceilings.copy_gb_per_s == 1000.0
    assert "tests on the device: passed, 12 passed" in result.notes
    assert json.loads((tmp_path / "tuning.json").read_text()) == {
        "schema": 1, "device": "Fake GPU 9000", "capability": 90, "triton": "3.99",
        "entries": ENTRIES,
    }  # fmt: skip
    parts = sorted(path.stem for path in (tmp_path / "parts").iterdir())
    assert parts == ["correctness", "speed-triple", "tuning"]


@pytest.mark.usefixtures("outcome")
def test_a_second_run_measures_nothing(machine: Machine, family: Family, tmp_path: Path) -> None:
    first = run(machine, family, tmp_path)

    class Stopped:
        cache_bytes = 1

        def seconds(self, run: object) -> float:
            raise AssertionError("measured again")

    assert run(dataclasses.replace(machine, clock=Stopped()), family, tmp_path) == first


def test_red_tests_withhold_the_ratios(
    machine: Machine, family: Family, tmp_path: Path, outcome: dict[str, Any]
) -> None:
    outcome |= {"state": "failed", "failures": ["tests/ops/test_triple.py::test_it"]}
    result = run(machine, family, tmp_path)
    assert {(row.ratio, row.withheld) for row in ours(result)} == {
        (None, "tests on the device failed")
    }


def test_red_tests_of_another_operation_withhold_nothing(machine: Machine, family: Family) -> None:
    from benchmarks.results import Row

    rows = [
        Row(op, "N=1", "bf16", "full", "fastgrow", "ours", "ok", ratio=2.0)
        for op in ("mlp", "attention", "attention-decode")
    ]
    tests = {"state": "failed", "failures": ["tests/kernels/test_attention_kernels.py::test_it"]}
    kept = {row.op: row.ratio for row in gpu.withheld_where_red(rows, tests)}
    assert kept == {"mlp": 2.0, "attention": None, "attention-decode": None}
    unknown = {"state": "failed: not finished after 120 s"}
    assert {row.ratio for row in gpu.withheld_where_red(rows, unknown)} == {None}


@pytest.mark.usefixtures("outcome")
def test_a_failed_part_is_told_and_tried_again(
    machine: Machine, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("ptxas is missing")

    with monkeypatch.context() as broken:
        broken.setattr(tuning, "tune", fails)
        result = run(machine, family, tmp_path)
    assert "tuning: failed: RuntimeError: ptxas is missing" in result.notes
    assert not (tmp_path / "tuning.json").exists()
    assert len(ours(result)) == 3
    run(machine, family, tmp_path)
    assert (tmp_path / "tuning.json").exists()


@pytest.mark.usefixtures("outcome")
def test_its_times_are_at_most_ten_minutes(machine: Machine) -> None:
    parts = gpu.plan(machine, gpu.FAMILIES, "gpu")
    assert sum(part.seconds for part in parts) == pytest.approx(600)
    assert len({part.name for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("status", "output", "state"),
    [
        (0, "....\n3 passed, 9 deselected in 1.2s", "passed"),
        (5, "\n9 deselected in 0.1s", "skipped: no test of the mark gpu ran"),
        (0, "sss\n3 skipped, 9 deselected in 0.1s", "skipped: no test of the mark gpu ran"),
        (1, "FAILED tests/a.py::t - AssertionError: /x\n1 failed, 2 passed in 2s", "failed"),
        (2, "ERROR tests/a.py - ImportError\n1 error in 2s", "failed"),
    ],
)
def test_pytests_last_line_is_read(status: int, output: str, state: str) -> None:
    found = gpu.tests_outcome(status, output)
    assert found["state"] == state
    assert all(" " not in name and name.startswith("tests/") for name in found["failures"])


def test_without_a_gpu_it_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no CUDA GPU is at hand" in captured.err
    assert not (tmp_path / "out").exists()

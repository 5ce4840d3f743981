"""`python -m benchmarks` and `fastgrow bench`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import command
from benchmarks.cases import FAMILIES
from benchmarks.contenders import COMPILE_MODES
from fastgrow.cli import bench
from fastgrow.cli import main as fastgrow
from fastgrow.ops.core.dispatch import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--device", "cpu", "--grid", "tiny", "--against", "implementation,eager,library")


@pytest.mark.usefixtures("time_stands_still")
def test_quick_measures_a_tiny_case_of_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*TINY, "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    tree = json.loads((tmp_path / "results.json").read_text())
    cells = {(row["op"], row["pass_"]) for row in tree["rows"]}
    assert cells == {(family.name, family.passes[-1]) for family in FAMILIES}
    ours = [row for row in tree["rows"] if row["role"] == "ours"]
    assert all(row["correct"] and row["ratio"] > 0 for row in ours)
    assert str(tmp_path) not in json.dumps(tree)
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(tree["rows"])
    assert (tmp_path / "results.png").stat().st_size > 0
    assert "Measured on a CPU" in printed
    assert "ceilings: copy" in printed


def test_the_module_runs(tmp_path: Path) -> None:
    arguments = [*TINY, "--op", "layer_norm", "--pass", "full", "--seconds", "0.01"]
    run = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "layer_norm N=32,d=16 fp32 full" in done.stdout
    assert "geometric mean" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "attentoin"], "--op: 'attentoin' is unknown; expected attention"),
        (["--dtype", "fp8"], "--dtype: 'fp8' is unknown; expected fp32"),
        (["--shape", "B2"], "shape 'B2': expected the form B=2,T=128"),
        (["--op", "mlp", "--shape", "T=3"], "mlp has no size 'T'; expected some of N, d"),
        (["report", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_listing_names_the_chosen_cases(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--list",
        "--device",
        "cpu",
        "--op",
        "mlp",
        "--dtype",
        "fp32,bf16",
        "--pass",
        "full",
    ]
    assert command.main([*arguments, "--shape", "N=7"]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [
        "mlp N=7,d=256 fp32 full", "mlp N=7,d=256 bf16 full"
    ]  # fmt: skip


def test_every_operation_is_measured() -> None:
    # The rotation is part of attention.
    assert {family.op for family in FAMILIES} >= set(OPERATIONS) - {"rope"}
    for family in FAMILIES:
        sizes = [set(shape) for grid in family.grids.values() for shape in grid]
        assert set(family.grids) == {"tiny", "cpu", "gpu"}
        assert all(names == sizes[0] for names in sizes)


def test_a_wrong_operation_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from fastgrow.ops.core import dispatch

    mlp = dispatch.OPERATIONS["mlp"].implementations
    broken = dataclasses.replace(
        mlp["eager"], name="broken", run=lambda call: 1.01 * mlp["eager"].run(call)
    )
    monkeypatch.setattr(dispatch.OPERATIONS["mlp"], "implementations", {"broken": broken, **mlp})
    assert command.main([*TINY, "--op", "mlp", "--pass", "forward", "--seconds", "0.01"]) == 1


@pytest.mark.slow
def test_compiled_contenders_run() -> None:
    from benchmarks.case import Case
    from benchmarks.clock import CpuClock
    from benchmarks.measure import Budget, Settings, measure

    family = next(f for f in FAMILIES if f.name == "layer_norm")
    case = Case(family, family.grids["tiny"][0], "fp32", "full")
    rows = measure(case, Settings(tuple(COMPILE_MODES), 0.0, 3), CpuClock(), Budget(10_000))
    assert [row.status for row in rows] == ["ok"] * 3
    assert all(row.correct for row in rows)


def test_fastgrow_bench_is_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert fastgrow(["bench", "--quick", "--device", "cpu", "--op", "mlp", "--list"]) == 0
    assert capsys.readouterr().out == "mlp N=512,d=256 fp32 full\n"


def test_fastgrow_bench_says_what_to_do_without_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "fastgrow" / "cli" / "bench.py"))
    assert fastgrow(["bench", "--quick"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m benchmarks" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpo"], "'gpo' is not a command; expected one of gpu, ship, "),
        (["report", "."], ".: expected a file, got a folder"),
        (["overhead", "--sweeps", "0"], "expected a whole number above 0, got 0"),
        (["--rounds", "1.5"], "expected a whole number above 0, got 1.5"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = command.main(arguments)
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]

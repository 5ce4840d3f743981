"""`python -m benchmarks experts`, yardsticks, and results that are written over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from fake_time import Ticking

from benchmarks import command, experts, scaling
from benchmarks.case import Case, Family, Inputs, Work, Yardstick
from benchmarks.cases import logit_mean
from benchmarks.contenders import contenders
from benchmarks.correctness import judge, truth_of
from benchmarks.machine import Machine
from benchmarks.measure import Budget, Settings, measure


@pytest.mark.usefixtures("time_stands_still")
def test_the_whole_table_in_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "SECONDS_A_CASE", 0.01)
    options = ["--device", "cpu", "--grid", "tiny", "--against", "eager,library"]
    status = command.main(["experts", *options, "--seconds", "900", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    tree = json.loads((tmp_path / "results.json").read_text())
    ours = [row for row in tree["rows"] if row["role"] == "ours"]
    assert all(row["correct"] for row in ours)
    wanted = {*experts.IN_BOTH_DTYPES, *experts.IN_FP32, experts.ENSEMBLE}
    assert {row["op"] for row in ours} == wanted
    assert {row["dtype"] for row in ours if row["op"] == "logit_mean"} == {"fp32", "bf16"}
    for name in ("copy_ of one", "clone of one", "bare products"):
        assert any(row["contender"] == name and row["median_ms"] > 0 for row in tree["rows"])
    for op in experts.SCALED:
        lines = [line.split() for line in printed.splitlines() if line.split()[:1] == [op]]
        assert [line[1] for line in lines if len(line) > 5 and line[1].isdigit()] == [
            str(K) for K in experts.SCALED_K
        ]
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_a_yardstick_is_neither_a_rival_nor_checked(family: Family, machine: Machine) -> None:
    stick = Yardstick(lambda inputs: inputs["x"][:1], Work(bytes=8.0))
    with_stick = dataclasses.replace(family, yardsticks=lambda case: {"part": stick})
    case = Case(with_stick, {"N": 64}, "fp32", "forward")
    rows = measure(case, Settings(("library",), 0.01), machine.clock, Budget(60.0, Ticking()))
    (row,) = [row for row in rows if row.contender == "part"]
    assert (row.role, row.status, row.correct, row.ratio) == ("yardstick", "ok", None, None)
    assert row.withheld == ""
    assert row.gb_per_s == pytest.approx(8e-9 / row.median_ms * 1e3)
    (ours,) = [row for row in rows if row.role == "ours"]
    (library,) = [row for row in rows if row.role == "library"]
    assert ours.ratio == pytest.approx(library.median_ms / ours.median_ms)


def test_what_another_contender_has_left_is_no_result() -> None:
    case = Case(logit_mean.INTO, {"K": 2, "N": 3, "V": 5}, "fp32", "forward")
    truth = truth_of(case)

    def lazy(inputs: Inputs) -> torch.Tensor:
        out: torch.Tensor = inputs["out"]
        return out

    assert not judge(case, lazy, truth).ok
    for contender in contenders(case, ("eager", "library", "implementation")):
        if contender.role != "yardstick":
            assert judge(case, contender.run, truth).ok, contender.name


def test_one_expert_has_the_same_contenders() -> None:
    for family in (logit_mean.FAMILY, logit_mean.INTO):
        case = Case(family, {"K": 1, "N": 3, "V": 5}, "fp32", "forward")
        truth = truth_of(case)
        for contender in contenders(case, ("library",)):
            if contender.role != "yardstick":
                assert judge(case, contender.run, truth).ok, contender.name


def test_scaling_takes_the_rows_that_differ_in_k_alone(family: Family, machine: Machine) -> None:
    case = Case(logit_mean.FAMILY, {"K": 4, "N": 2, "V": 3}, "fp32", "forward")
    rows = measure(case, Settings(("library",), 0.01), machine.clock, Budget(60.0, Ticking()))
    assert {scaling.without_k(row) for row in rows} == {"N=2,V=3 fp32"}
    (line,) = scaling.lines(rows)
    assert line[:2] == ["logit_mean", "4"]
    assert line[-1] in {row.contender for row in rows}

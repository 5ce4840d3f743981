"""One case from contenders to rows, on an operation made for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from fake_time import FakeClock, Ticking

from benchmarks import measure as measuring
from benchmarks.case import Case, Family, select
from benchmarks.cases import families
from benchmarks.contenders import formula
from benchmarks.correctness import CEILINGS, Verdict, judge, truth_of
from benchmarks.measure import Budget, Settings, measure
from benchmarks.results import Row
from benchmarks.suite import run_cases
from fastgrow.errors import ConfigError
from fastgrow.ops.core.dispatch import Implementation, Operation

PLAIN = ("implementation", "eager", "library")
SETTINGS = Settings(against=PLAIN, seconds=0.0, min_rounds=3)


def rows_of(family: Family, pass_: str = "full") -> dict[str, Row]:
    case = Case(family, {"N": 64}, "fp32", pass_)
    rows = measure(case, SETTINGS, FakeClock(), Budget(60, Ticking()))
    assert len({row.cell for row in rows}) == 1
    return {row.contender: row for row in rows}


def test_each_tensor_of_a_list_has_a_gradient_that_is_checked() -> None:
    (family,) = families(["mean_cross_entropy"])
    case = Case(family, {"K": 3, "N": 8, "V": 64}, "fp32", "full")
    logits = case.inputs(seed=0)["logits"]
    assert len(logits) == 3
    assert all(x.requires_grad for x in logits)
    truth = truth_of(case)
    gradients = {f"d logits[{k}]" for k in range(3)}
    assert set(truth.results) == {"output 0", *gradients}
    assert judge(case, formula(case), truth).ok
    assert not any(
        x.requires_grad for x in dataclasses.replace(case, pass_="forward").inputs(0)["logits"]
    )


@pytest.mark.parametrize("pass_", ["forward", "backward", "full"])
def test_time_memory_and_correctness_are_in_one_row(family: Family, pass_: str) -> None:
    rows = rows_of(family, pass_)
    assert list(rows) == ["fastgrow", "fastgrow sums", "eager", "library"]
    for row in rows.values():
        assert row.status == "ok"
        assert row.median_ms == pytest.approx(1.0)
        assert row.runs == 3
        assert row.correct is True
        assert row.checked == "N=64"
        assert row.peak_mib is not None
        assert row.peak_mib > 0
    assert rows["fastgrow"].ratio == pytest.approx(1.0)


def test_a_wrong_result_withholds_the_ratio(family: Family, operation: Operation) -> None:
    operation.implementations["sums"] = Implementation("sums", lambda x: 3.001 * x)
    row = rows_of(family)["fastgrow"]
    assert row.correct is False
    assert "off by" in row.problem
    assert (row.ratio, row.withheld) == (None, "not correct")


def test_a_wrong_gradient_is_wrong(family: Family, operation: Operation) -> None:
    operation.implementations["sums"] = Implementation(
        "sums", lambda x: (3 * x).detach() + 3.1 * (x - x.detach())
    )
    assert rows_of(family, "forward")["fastgrow"].correct is True
    row = rows_of(family, "full")["fastgrow"]
    assert row.correct is False
    assert row.problem.startswith("d x")


def test_what_is_not_finite_is_wrong(family: Family, operation: Operation) -> None:
    operation.implementations["sums"] = Implementation("sums", lambda x: 3 * x / (x != x[0]))
    row = rows_of(family, "forward")["fastgrow"]
    assert row.correct is False
    assert "not finite" in row.problem
    json.dumps(dataclasses.asdict(row), allow_nan=False)


def test_one_unit_more_than_allowed_is_wrong(family: Family) -> None:
    case = Case(family, {"N": 64}, "fp32", "forward")
    truth = truth_of(case)
    largest = float(truth.results["output 0"].abs().max())
    allowed = 2 * truth.formula_errors["output 0"] + 2 * torch.finfo(torch.float32).eps * largest

    def shifted(by: float) -> Verdict:
        # One element only, so that the RMS is below its ceiling.
        def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            y = 3 * inputs["x"].double()
            y[0] += by
            return y

        return judge(case, run, truth)

    assert shifted(0.99 * allowed).ok
    assert not shifted(1.01 * allowed).ok


def test_the_ceiling_is_above_what_the_formula_reaches_itself() -> None:
    """In the growth step in bf16, each gradient is rounded many times by every contender."""
    (family,) = families(["growth_step"])
    shape = {"B": 1, "T": 32, "d": 64, "H": 2, "V": 256, "L": 9}
    case = Case(family, shape, "bf16", "full")
    truth = truth_of(case)
    assert max(truth.formula_rms.values()) > CEILINGS[torch.bfloat16], "the formula alone passes"
    plain = family.libraries(case)["plain torch"]
    for run in (formula(case), plain):
        verdict = judge(case, run, truth)
        assert verdict.ok, verdict.reason

    def wrong(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["x"]
        return plain({**inputs, "x": x + 0.05 * torch.randn_like(x)})

    assert not judge(case, wrong, truth).ok


def test_what_cannot_run_has_a_row_that_says_why(family: Family, operation: Operation) -> None:
    operation.implementations["triton"] = Implementation(
        "triton", lambda x: x, lambda x: (False, "there is no GPU")
    )

    def broken(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError("not for this shape\nsecond line")

    with_broken = dataclasses.replace(family, libraries=lambda case: {"library": broken})
    rows = rows_of(with_broken)
    assert rows["fastgrow triton"].status == "cannot run: there is no GPU"
    assert rows["library"].status == "failed: NotImplementedError: not for this shape"
    assert rows["library"].median_ms is None
    assert rows["fastgrow"].ratio == pytest.approx(1.0)


@pytest.mark.parametrize("others", [0, 30 << 30])
def test_want_of_memory_that_others_hold_is_no_last_word(
    others: int, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "memory_of_others", lambda device: others)

    def large(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = rows_of(dataclasses.replace(family, libraries=lambda case: {"library": large}))
    expected = "skipped: out of memory; other processes use 30 GiB"
    assert rows["library"].status == (expected if others else "failed: out of memory")
    # The inputs or the truth of a check.
    rows = rows_of(dataclasses.replace(family, inputs=lambda *_: large({})))
    assert {row.status for row in rows.values()} == {
        expected if others else "failed: out of memory"
    }


@pytest.mark.parametrize(("terms", "is_right"), [(0, False), (10_000, True)])
def test_a_long_sum_may_be_off_by_more(terms: int, is_right: bool, family: Family) -> None:
    def library(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        y = 3 * inputs["x"]
        # Ten of the units that any result may be off by, in one place.
        error = torch.zeros(64, dtype=y.dtype)
        error[0] = 20 * torch.finfo(y.dtype).eps * y.detach().abs().max()
        return y + error

    long = dataclasses.replace(
        family, libraries=lambda case: {"library": library}, sums=lambda shape: terms
    )
    row = rows_of(long)["library"]
    assert row.correct is is_right
    assert ("off by" in row.problem) is not is_right


def test_the_ratio_is_that_of_the_medians(family: Family) -> None:
    library_ran: list[bool] = []

    def library(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        library_ran.append(True)
        return 3 * inputs["x"]

    def cost(result: object) -> float:
        seconds = 3e-3 if library_ran else 2e-3
        library_ran.clear()
        return seconds

    slow_library = dataclasses.replace(family, libraries=lambda case: {"library": library})
    settings = Settings(("library",), seconds=0.0, min_rounds=3)
    case = Case(slow_library, {"N": 64}, "fp32", "forward")
    ours, other = measure(case, settings, _Cleared(cost, library_ran), Budget(60, Ticking()))
    assert ours.median_ms == pytest.approx(2.0)
    assert other.median_ms == pytest.approx(3.0)
    assert ours.ratio == pytest.approx(1.5)


class _Cleared(FakeClock):
    """Forgets what ran before the timed call."""

    def __init__(self, cost: Callable[[object], float], marks: list[bool]) -> None:
        super().__init__(cost)
        self.marks = marks

    def seconds(self, run: Callable[[], object], *others: object) -> float:
        self.marks.clear()
        return super().seconds(run)


def test_compiling_is_left_out_when_time_is_short(family: Family) -> None:
    case = Case(family, {"N": 64}, "fp32", "forward")
    settings = Settings(against=("compile",), seconds=0.0, min_rounds=1)
    rows = measure(case, settings, FakeClock(), Budget(10, Ticking()))
    (compiled,) = [row for row in rows if row.contender == "compile"]
    assert compiled.status == "skipped: not enough of 10 s left to compile it"


def test_a_run_ends_with_its_budget_and_says_so(family: Family, machine: object) -> None:
    cases = select([family], device="cpu", grid="cpu", dtypes=["fp32"])
    assert len(cases) == 6
    rows, notes = run_cases(cases, SETTINGS, machine, Budget(20.0, Ticking(1.0)))  # type: ignore[arg-type]
    measured = {row.cell for row in rows}
    assert 0 < len(measured) < 6
    assert notes == [f"{6 - len(measured)} of 6 cases were not measured: no time left of 20 s"]


def test_selecting(family: Family) -> None:
    def names(**options: object) -> list[str]:
        chosen = {"device": "cpu", "grid": "cpu", "dtypes": ["fp32"], **options}
        return [case.name for case in select([family], **chosen)]  # type: ignore[arg-type]

    assert names(first_only=True) == ["triple N=64 fp32 full"]
    assert names(passes=["forward"], shapes=[{"N": 5}]) == ["triple N=5 fp32 forward"]
    with pytest.raises(ConfigError, match="triple has no size 'T'"):
        names(shapes=[{"T": 5}])
    without: Callable[[], list[Case]] = lambda: select(  # noqa: E731
        [dataclasses.replace(family, differentiate=())],
        device="cpu", grid="cpu", dtypes=["fp32"], passes=["full"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--pass full: no chosen operation has"):
        without()

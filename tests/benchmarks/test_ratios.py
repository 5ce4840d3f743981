"""Speed-ups over the fastest library, which are withheld if they would mislead."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.ratios import overviews, ratio_range, with_ratios
from benchmarks.results import Row


def row(contender: str, role: str, ms: float | None, **changes: object) -> Row:
    status = "ok" if ms is not None else "cannot run: too old"
    made = Row("attention", "T=1", "bf16", "full", contender, role, status, median_ms=ms)
    if ms is not None:
        made = dataclasses.replace(made, correct=True)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


LIBRARIES = [row("eager", "library", 8.0), row("sdpa flash", "library", 3.0)]
REQUIRED = ("sdpa flash", "sdpa cudnn")


def test_the_ratio_is_to_the_fastest_library() -> None:
    ours, forced, eager, _ = with_ratios(
        [row("fastgrow", "ours", 2.0), row("fastgrow triton", "implementation", 6.0), *LIBRARIES],
        (),
    )
    assert ours.ratio == pytest.approx(1.5)
    assert forced.ratio == pytest.approx(0.5)
    assert eager.ratio is None
    assert eager.withheld == ""


def test_no_ratio_where_correctness_is_red() -> None:
    wrong, unknown, *_ = with_ratios(
        [
            row("fastgrow", "ours", 2.0, correct=False),
            row("fastgrow triton", "implementation", 1.0, correct=None),
            *LIBRARIES,
        ],
        (),
    )
    assert (wrong.ratio, wrong.withheld) == (None, "not correct")
    assert (unknown.ratio, unknown.withheld) == (None, "correctness was not checked")


def test_no_ratio_unless_flash_and_cudnn_both_ran() -> None:
    absent = row("sdpa cudnn", "library", None)
    ours, *_ = with_ratios([row("fastgrow", "ours", 2.0), *LIBRARIES, absent], REQUIRED)
    assert (ours.ratio, ours.withheld) == (None, "sdpa cudnn did not run")
    there = row("sdpa cudnn", "library", 4.0)
    ours, *_ = with_ratios([row("fastgrow", "ours", 2.0), *LIBRARIES, there], REQUIRED)
    assert ours.ratio == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("status", "withheld"),
    [
        ("refused: head_dim should be a multiple of 8", ""),
        ("failed: RuntimeError: out of luck", "sdpa cudnn did not run"),
        ("not installed", "sdpa cudnn did not run"),
        ("skipped: no time left of 10 s", "sdpa cudnn is not ready"),
    ],
)
def test_a_required_library_may_refuse_and_nothing_else(status: str, withheld: str) -> None:
    absent = row("sdpa cudnn", "library", None, status=status)
    ours, *_ = with_ratios([row("fastgrow", "ours", 2.0), *LIBRARIES, absent], REQUIRED)
    assert ours.withheld == withheld
    assert (ours.ratio is None) == bool(withheld)


def test_what_is_not_ready_may_be_faster_and_what_is_not_here_is_not() -> None:
    ours = row("fastgrow", "ours", 2.0)
    waiting = row("compile", "library", None, status="skipped: no time left of 10 s")
    absent = row("liger", "library", None, status="not installed")
    first, *_ = with_ratios([ours, *LIBRARIES, absent], ())
    assert first.ratio == pytest.approx(1.5)
    withheld, *_ = with_ratios([ours, *LIBRARIES, waiting, absent], ())
    assert (withheld.ratio, withheld.withheld) == (None, "compile is not ready")


def test_a_fast_wrong_library_is_still_the_one_to_beat() -> None:
    wrong = row("quick and dirty", "library", 1.0, correct=False)
    ours, *_ = with_ratios([row("fastgrow", "ours", 2.0), *LIBRARIES, wrong], ())
    assert ours.ratio == pytest.approx(0.5)


def test_no_ratio_without_a_library() -> None:
    (ours,) = with_ratios([row("fastgrow", "ours", 2.0)], ())
    assert ours.withheld == "no library variant ran"


def test_the_overview_has_the_worst_the_mean_and_the_best_ratio() -> None:
    rows = [
        row("fastgrow", "ours", 1.0, ratio=2.0, shape="T=2"),
        row("fastgrow", "ours", 1.0, ratio=0.5, shape="T=3"),
        row("fastgrow", "ours", 1.0, withheld="not correct", shape="T=4"),
        row("fastgrow triton", "implementation", 1.0, ratio=9.0),
        row("eager", "library", 1.0),
    ]
    (view,) = overviews(rows)
    assert (view.cells, view.reported) == (3, 2)
    assert view.mean == pytest.approx(1.0)
    assert view.worst is not None
    assert view.worst.shape == "T=3"
    assert view.best is not None
    assert view.best.shape == "T=2"


def test_an_overview_of_nothing_told_has_no_numbers() -> None:
    (view,) = overviews([row("fastgrow", "ours", 1.0, withheld="not correct")])
    assert (view.mean, view.worst, view.best, view.reported) == (None, None, None, 0)


def test_the_range_is_from_the_unlucky_to_the_lucky_end() -> None:
    ours = row("fastgrow", "ours", 2.0, p20_ms=1.5, p80_ms=2.5)
    fast = row("sdpa flash", "library", 3.0, p20_ms=2.0, p80_ms=4.5)
    slow = row("eager", "library", 8.0, p20_ms=7.0, p80_ms=9.0)
    elsewhere = row("compile", "library", 1.0, p20_ms=1.0, p80_ms=1.0, shape="T=2")
    rows = with_ratios([ours, slow, fast], ())
    assert ratio_range(rows[0], [*rows, elsewhere]) == pytest.approx((0.8, 3.0))
    assert ratio_range(dataclasses.replace(rows[0], ratio=None), rows) is None

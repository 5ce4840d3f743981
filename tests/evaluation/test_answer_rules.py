"""Rules for correct answers, and the statistics of scores."""

from __future__ import annotations

import numpy as np
import pytest

from fastgrow.evaluation.answer_rules import (
    contains_answer,
    exact_match,
    f1,
    first_letter,
    normalised,
)
from fastgrow.evaluation.statistics import bootstrap, of_set, over_questions, over_runs


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A", "A"), (" b", "B"), ("\n c) d", "C"), ("", ""), ("  ", ""), ("(A", "("), ("ß", "S")],
)
def test_first_letter(answer: str, letter: str) -> None:
    assert first_letter(answer) == letter


def test_the_papers_substring_rule() -> None:
    assert contains_answer(" it was 1782, they say", "1782")
    assert contains_answer("NORMANDY", "Normandy")
    assert not contains_answer("178 2", "1782")
    assert not contains_answer("", "1782")


def test_squad_normalisation() -> None:
    assert normalised("The  Answer, a «man's» an-swer.") == "answer «mans» answer"
    assert exact_match("The Thames.", ["thames"])
    assert exact_match("two", ["2", "two"])
    assert not exact_match("theme", ["the me"])


def test_f1_by_hand() -> None:
    # Shared: "old", "mill" once each; precision 2/3, recall 2/4.
    assert f1("old mill mill", ["the old mill by rivers"]) == pytest.approx(2 * 2 / (3 + 4))
    assert f1("x", ["y", "x z"]) == pytest.approx(2 / 3)
    assert f1("nothing", ["else"]) == 0
    assert f1("the", ["a"]) == 1
    assert f1("the", ["b"]) == 0


def test_runs_by_hand() -> None:
    # Runs score 50, 100 and 0 over two questions.
    values = np.array([[100.0, 100.0, 0.0], [0.0, 100.0, 0.0]])
    score = over_runs(values, resamples=200, seed=0)
    assert score.mean == pytest.approx(50)
    assert score.sigma == pytest.approx((2 * 50**2 / 3) ** 0.5)
    assert score.ci == pytest.approx(1.96 * score.sigma / 3**0.5)
    # The questions score 66.7 and 33.3: the means of resamples are equal to these or between them.
    assert score.low == pytest.approx(100 / 3)
    assert score.high == pytest.approx(200 / 3)
    assert str(score) == f"50.00 ± {score.ci:.2f}"
    whole = of_set(np.array([10.0, 20.0]))
    assert (whole.mean, whole.sigma, whole.low, whole.high) == (15, 5, None, None)


def test_the_bootstrap_finds_the_standard_error() -> None:
    values = 100.0 * (np.arange(400) % 4 == 0)
    low, high = bootstrap(values, resamples=4000, seed=0)
    error = values.std() / 400**0.5
    assert low == pytest.approx(25 - 1.96 * error, abs=0.4)
    assert high == pytest.approx(25 + 1.96 * error, abs=0.4)
    assert bootstrap(values, resamples=4000, seed=0) == (low, high)
    assert bootstrap(values, resamples=100, seed=1) != bootstrap(values, resamples=100, seed=0)
    sure = over_questions(np.full(7, 100.0), resamples=50, seed=0)
    assert (sure.mean, sure.sigma, sure.ci, sure.low, sure.high) == (100, None, None, 100, 100)

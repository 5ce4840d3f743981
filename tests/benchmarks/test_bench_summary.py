"""Quantiles and means."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.memory import highest
from benchmarks.summary import geometric_mean, quantile, timing


def test_quantiles_are_numpys() -> None:
    samples = np.random.default_rng(0).exponential(size=37).tolist()
    found = timing(samples)
    assert found.runs == 37
    expected = np.quantile(samples, [0.5, 0.2, 0.8])
    assert [found.median, found.p20, found.p80] == pytest.approx(expected)


def test_one_sample_is_every_quantile() -> None:
    assert quantile([2.5], 0.2) == quantile([2.5], 0.8) == 2.5


def test_twice_as_fast_and_half_as_fast_cancel() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 1.0, 8.0]) == pytest.approx(2.0)


def test_the_peak_is_the_highest_sum_on_the_way() -> None:
    assert highest([5, 3, -8, 4, -4]) == 8
    assert highest([]) == 0

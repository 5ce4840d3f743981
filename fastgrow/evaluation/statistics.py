"""Means and their uncertainty, over runs as in the papers and over questions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_BLOCK = 64


@dataclass(frozen=True)
class Score:
    """A score in per cent.

    Attributes:
        mean: mean over runs and questions.
        sigma: population standard deviation of the runs' means; None if there are no runs.
        ci: 1.96 σ / √runs, the papers' interval. It measures the uncertainty due to sampling, not
            due to the choice of questions.
        low, high: 95 % bootstrap interval over the questions; None for a score of the whole set,
            such as corpus BLEU.
    """

    mean: float
    sigma: float | None
    ci: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        spread = "" if self.ci is None else f" ± {self.ci:.2f}"
        return f"{self.mean:.2f}{spread}"


def over_runs(values: np.ndarray, *, resamples: int, seed: int) -> Score:
    """Compute the score of values [questions, runs] in per cent."""
    low, high = bootstrap(values.mean(axis=1), resamples=resamples, seed=seed)
    return replace(of_set(values.mean(axis=0)), low=low, high=high)


def of_set(values: np.ndarray) -> Score:
    """Compute the score of values [runs] in per cent, each for a whole set of answers."""
    sigma = float(values.std())
    return Score(float(values.mean()), sigma, 1.96 * sigma / math.sqrt(len(values)), None, None)


def over_questions(values: np.ndarray, *, resamples: int, seed: int) -> Score:
    """Compute the score of values [questions] in per cent, one for each question."""
    low, high = bootstrap(values, resamples=resamples, seed=seed)
    return Score(float(values.mean()), None, None, low, high)


def bootstrap(values: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the means of resamples of values [questions]."""
    generator = np.random.default_rng(seed)
    means = []
    for first in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - first)
        chosen = generator.integers(len(values), size=(rows, len(values)))
        means.append(values[chosen].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)

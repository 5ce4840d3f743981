"""Statistics of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Quantiles of samples, in the samples' unit."""

    median: float
    p20: float
    p80: float
    runs: int


def timing(samples: Sequence[float]) -> Timing:
    """Return the median and the 20th and 80th percentile of at least one sample."""
    return Timing(
        quantile(samples, 0.5), quantile(samples, 0.2), quantile(samples, 0.8), len(samples)
    )


def quantile(samples: Sequence[float], share: float) -> float:
    """Return a quantile, with linear interpolation between neighbouring samples."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean, in which 2× and 0.5× cancel."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))

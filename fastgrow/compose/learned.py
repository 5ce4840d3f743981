"""`LearnedWeights`: a weighted sum of logits whose weights are fitted to a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from fastgrow.compose.rules import LogitRule
from fastgrow.compose.weights import (
    checked_weights,
    weights_in_order,
    with_new_name,
    without_name,
)


@dataclass(frozen=True)
class LearnedWeights(LogitRule):
    """A weighted sum of logits with unconstrained weights: z = Σ_k w_k · z_k.

    Each w_k is a weight times an inverse temperature.

    `tune(…, what="weights")` fits them. They need not sum to 1 and may be negative (a log-linear
    pool with fitted exponents, Hinton 2002; Heskes 1998).

    Args:
        weights: w_k by expert name; None for 1/K each, before they are fitted.

    Raises:
        ConfigError: a weight is not a finite number, or all are zero.
    """

    kind = "learned_weights"

    weights: Mapping[str, float] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.weights is not None:
            checked = checked_weights(self.weights, "LearnedWeights", negative=True)
            object.__setattr__(self, "weights", checked)

    def coefficients(self, names: Sequence[str]) -> list[float]:
        if self.weights is None:
            return [1 / len(names)] * len(names)
        return weights_in_order(self.weights, names, "LearnedWeights")

    def with_weights(self, weights: Mapping[str, float]) -> Self:
        return replace(self, weights=weights)

    def without(self, name: str) -> Self:
        if self.weights is None:
            return self
        return replace(self, weights=without_name(self.weights, name))

    def renamed(self, old: str, new: str) -> Self:
        if self.weights is None:
            return self
        return replace(self, weights=with_new_name(self.weights, old, new))

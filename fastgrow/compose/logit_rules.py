"""Further rules over logits: `Temperature` and `Contrast`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastgrow._checked import NonNegativeFloat, PositiveFloat, check_types
from fastgrow.compose.rules import LogitRule, Rule
from fastgrow.compose.weights import (
    checked_weights,
    listed,
    normalized,
    weights_in_order,
    with_new_name,
    without_name,
)
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class Temperature(LogitRule):
    """Weighted mean of logits, each divided by a temperature: z = Σ_k w_k · z_k / T_k.

    An overconfident expert dominates the others under `Mean`; a temperature above 1 reduces its
    confidence (Guo et al. 2017, arXiv 1706.04599).

    Args:
        temperatures: T_k > 0 by expert name; 1 for an expert that is not named.
        weights: w_k by expert name, each at least 0, divided by their sum; equal if not given.

    Raises:
        ConfigError: a temperature is not a finite number above 0, or a weight is negative.
    """

    kind = "temperature"

    temperatures: Mapping[str, PositiveFloat]
    weights: Mapping[str, NonNegativeFloat] | None = None

    def __post_init__(self) -> None:
        check_types(self, plain=True)
        checked = {str(name): float(value) for name, value in self.temperatures.items()}
        object.__setattr__(self, "temperatures", checked)
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_weights(self.weights, "Temperature"))

    def coefficients(self, names: Sequence[str]) -> list[float]:
        unknown = [name for name in self.temperatures if name not in names]
        if unknown:
            raise ConfigError(
                f"Temperature: there is a temperature for {unknown[0]!r}, but no such expert; "
                f"the experts are {listed(names)}"
            )
        weights = [1.0] * len(names)
        if self.weights is not None:
            weights = weights_in_order(self.weights, names, "Temperature")
        shares = normalized(weights, "Temperature")
        return [w / self.temperatures.get(n, 1.0) for n, w in zip(names, shares, strict=True)]

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        return replace(self, weights=weights)

    def without(self, name: str) -> Rule:
        weights = None if self.weights is None else without_name(self.weights, name)
        return replace(self, temperatures=without_name(self.temperatures, name), weights=weights)

    def renamed(self, old: str, new: str) -> Rule:
        temperatures = with_new_name(self.temperatures, old, new)
        weights = None if self.weights is None else with_new_name(self.weights, old, new)
        return replace(self, temperatures=temperatures, weights=weights)


@dataclass(frozen=True)
class Contrast(LogitRule):
    """Subtracts the logits of one expert: z = (1 + β) · mean of the others' logits − β · z_against.

    Tokens that the others predict and `against` does not become more likely. If `against` is a
    weaker model, this is contrastive decoding (Li et al. 2022, arXiv 2210.15097); if it was trained
    on unwanted text, DExperts (Liu et al. 2021, arXiv 2105.03023). Both papers also remove
    implausible tokens, which this rule does not: sample with `top_p`.

    Args:
        against: name of the expert whose logits are subtracted.
        strength: β ≥ 0; with 0 the rule is the mean of the others.

    Raises:
        ConfigError: β is negative or not a finite number.
    """

    kind = "contrast"

    against: str
    strength: NonNegativeFloat = 0.5

    def __post_init__(self) -> None:
        check_types(self)

    def coefficients(self, names: Sequence[str]) -> list[float]:
        if self.against not in names:
            raise ConfigError(
                f"Contrast: 'against' names {self.against!r}, but there is no such expert; "
                f"the experts are {listed(names)}"
            )
        if len(names) < 2:
            raise ConfigError(
                f"Contrast: {self.against!r} is the only expert; expected at least two"
            )
        share = (1 + self.strength) / (len(names) - 1)
        return [-self.strength if name == self.against else share for name in names]

    def renamed(self, old: str, new: str) -> Rule:
        return replace(self, against=new) if self.against == old else self

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        raise ConfigError("Contrast: it has a strength instead of weights; pass a new Contrast(…)")

"""Operations on the experts' weights, by expert name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastgrow.errors import ConfigError


def checked_weights(
    weights: Mapping[str, float], rule: str, *, negative: bool = False
) -> dict[str, float]:
    """Return a copy of `weights` as floats.

    Args:
        weights: one number for each expert's name.
        rule: the rule's name, for the message.
        negative: whether weights below zero are allowed.

    Raises:
        ConfigError: there are no weights, all are zero, or a weight is not a finite number or is
            negative but must not be; the message names the expert.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ConfigError(
            f"{rule}: expected weights by expert name, such as {{'ru': 0.6, 'zh': 0.4}}, "
            f"got {weights!r}"
        )
    checked = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"{rule}: the weight of {name!r} is {weight!r}, not a number")
        if not math.isfinite(weight):
            raise ConfigError(f"{rule}: the weight of {name!r} is {weight}, not a finite number")
        if weight < 0 and not negative:
            raise ConfigError(f"{rule}: the weight of {name!r} is {weight}; expected at least 0")
        checked[str(name)] = float(weight)
    if not any(checked.values()):
        raise ConfigError(f"{rule}: every weight is zero")
    return checked


def weights_in_order(weights: Mapping[str, float], names: Sequence[str], rule: str) -> list[float]:
    """Return the weights of the experts `names`, in that order.

    Raises:
        ConfigError: an expert has no weight, or a weight belongs to no expert.
    """
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise ConfigError(
            f"{rule}: there is a weight for {unknown[0]!r}, but no such expert; "
            f"the experts are {listed(names)}"
        )
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(
            f"{rule}: expert {missing[0]!r} has no weight; weights are given for {listed(weights)}"
        )
    return [weights[name] for name in names]


def normalized(weights: Sequence[float], rule: str) -> list[float]:
    """Return the weights divided by their sum.

    Raises:
        ConfigError: the sum is not above zero.
    """
    total = math.fsum(weights)
    if total <= 0:
        raise ConfigError(f"{rule}: the weights sum to {total:g}; a mean needs a sum above 0")
    return [weight / total for weight in weights]


def without_name(weights: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the weights of all other experts."""
    return {other: weight for other, weight in weights.items() if other != name}


def with_new_name(weights: Mapping[str, float], old: str, new: str) -> dict[str, float]:
    """Return the weights with the expert `old` renamed to `new`."""
    return {new if name == old else name: weight for name, weight in weights.items()}


def listed(names: Sequence[str] | Mapping[str, float]) -> str:
    """Format names for a message: 'ru', 'zh'."""
    return ", ".join(repr(name) for name in names)

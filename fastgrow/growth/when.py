"""When a stage ends before its tokens are used up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastgrow.errors import ConfigError


class Until:
    """What may end a stage: a `Plateau` or a `Budget`."""


@dataclass(frozen=True)
class Plateau(Until):
    """End once the validation loss stands still, after a short cooldown of the learning rate.

    The learning rate is constant after its warm-up, for a decaying one would make its own plateau.

    Args:
        patience: evaluations without an improvement, at least 1.
        min_delta: nats a token by which a loss has to fall below the best one to improve on it.
        cooldown: steps that follow the decision, as a share of those made, over which the learning
            rate falls in a line to its minimum; at least one step.

    Raises:
        ConfigError: a value is out of range.
    """

    patience: int = 3
    min_delta: float = 0.005
    cooldown: float = 0.1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"Plateau.patience: expected at least 1, got {self.patience}")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(
                f"Plateau.min_delta: expected a number of at least 0, got {self.min_delta}"
            )
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"Plateau.cooldown: expected between 0 and 1, got {self.cooldown}")


@dataclass(frozen=True)
class Budget(Until):
    """End when a stage has cost so much; exactly one of the two is given.

    Args:
        flops: floating-point operations of the stage's training, counted from shapes
            (`fastgrow.growth.flops`); known beforehand, so the stage is simply a shorter one.
        seconds: of the stage's training on this machine, its evaluations and checkpoints included;
            time spent before an interruption counts.

    Raises:
        ConfigError: neither or both are given, or one is not positive.
    """

    flops: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.flops is None) == (self.seconds is None):
            raise ConfigError("Budget: expected exactly one of flops and seconds")
        for name in ("flops", "seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"Budget.{name}: expected a positive number, got {value}")

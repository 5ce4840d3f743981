"""When a stage ends before its tokens are used up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastgrow._checked import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Proportion,
    check_types,
)
from fastgrow.errors import ConfigError


class Until:
    """What may end a stage: a `Plateau` or a `Budget`."""


@dataclass(frozen=True)
class Plateau(Until):
    """End once the validation loss stands still.

    The learning rate is constant after its warm-up, for a decaying one would make its own plateau.
    Where stages share one schedule (`TrainConfig.schedule` "wsd"), the next stage goes on at that
    rate, and the last one ends with the run's decay. Under "per-stage" a short cooldown follows.

    Args:
        patience: evaluations without an improvement, at least 1.
        min_delta: nats a token by which a loss has to fall below the best one to improve on it.
        cooldown: of "per-stage": steps that follow the decision, as a share of those made, over
            which the learning rate falls in a line to its minimum; at least one step.

    Raises:
        ConfigError: a value is out of range.
    """

    patience: PositiveInt = 3
    min_delta: NonNegativeFloat = 0.005
    cooldown: Proportion = 0.1

    def __post_init__(self) -> None:
        check_types(self)


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

    flops: PositiveFloat | None = None
    seconds: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if (self.flops is None) == (self.seconds is None):
            raise ConfigError("Budget: expected exactly one of flops and seconds")


class PlateauRule:
    """Watches the validation loss; state of a running stage.

    Args:
        plateau: what counts as standing still.
    """

    used = None

    def __init__(self, plateau: Plateau) -> None:
        self.cooldown = plateau.cooldown
        self._plateau = plateau
        self._best = math.inf
        self._since_best: list[list[float]] = []

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int = 0
    ) -> dict[str, Any] | None:
        """The best loss and the steps and losses since, once they are `patience` many."""
        if validation_loss is None:
            return None
        if validation_loss < self._best - self._plateau.min_delta:
            self._best, self._since_best = validation_loss, []
            return None
        self._since_best.append([step, validation_loss])
        if len(self._since_best) < self._plateau.patience:
            return None
        return {"reason": "plateau", "best_loss": self._best, "losses_since": self._since_best}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since_best": self._since_best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best = state["best"]
        self._since_best = [list(pair) for pair in state["since_best"]]


class SecondsRule:
    """Watches the clock; state of a running stage.

    Args:
        seconds: that the stage may take, its cooldown included.
        clock: gives seconds.
    """

    cooldown = 0.1

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    @property
    def used(self) -> float:
        """Share of the seconds that are spent."""
        return (self._clock() - self._began) / self._seconds

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int
    ) -> dict[str, Any] | None:
        """The time spent, once the steps of the cooldown take what is left."""
        spent = self._clock() - self._began
        if spent * (1 + cooldown / step) < self._seconds:
            return None
        return {"reason": "seconds", "seconds": spent, "budget": self._seconds}

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self._clock() - self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._began = self._clock() - state["spent"]

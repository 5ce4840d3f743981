"""What may end a stage before its tokens are used up: stop criteria and the rules they build."""

from __future__ import annotations

import dataclasses
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
from fastgrow.training.lr_controller import StopDecision, StopRule


@dataclass(frozen=True)
class StageLength:
    """The length of a stage.

    Attributes:
        steps: number of optimizer steps, or the upper bound of it if there is a rule.
        rule: may end the stage earlier, from what it observes during training.
        decision: why the stage has this length, if that was decided before training.
    """

    steps: int
    rule: StopRule | None = None
    decision: StopDecision | None = None


class StopCriterion:
    """A setting of a stage (`Stage.until`) that may end it before its tokens are used up.

    `Plateau` and `Budget` are stop criteria. To define another one, derive a frozen dataclass and
    implement `length`. Its fields, which must have JSON values, are the criterion's settings.
    """

    @property
    def needs_validation(self) -> bool:
        """Whether the rule observes the validation loss, so that the run needs validation text."""
        return False

    @property
    def tokens_are_planned(self) -> bool:
        """Whether `Stage.tokens` is the expected length of the stage, and not just an upper bound.

        The warm-up is a share of expected lengths only.
        """
        return True

    def length(self, steps: int, flops_per_step: int) -> StageLength:
        """Return the length of a stage with this criterion.

        Args:
            steps: number of optimizer steps that the stage's tokens take.
            flops_per_step: floating-point operations of one step (`fastgrow.growth.flops`).
        """
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Return the settings as JSON values; a run is resumed only if they are the same."""
        values: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        if type(self) in (Plateau, Budget):
            # Records of these two contain the fields only, without a name of the criterion.
            return values
        return {"criterion": f"{type(self).__module__}.{type(self).__qualname__}", **values}


@dataclass(frozen=True)
class Plateau(StopCriterion):
    """End the stage once the validation loss stops improving.

    The learning rate is constant after its warm-up, because a decaying one would cause a plateau
    itself. If stages share one schedule (`TrainConfig.schedule` "wsd"), the next stage continues at
    that learning rate, and the last one ends with the run's decay. Under "per-stage" a short
    cooldown follows.

    Args:
        patience: number of evaluations without an improvement, at least 1.
        min_delta: nats per token by which a loss has to be below the best one to improve on it.
        cooldown: under "per-stage": number of steps that follow the decision, as a share of the
            steps made, over which the learning rate falls linearly to its minimum; at least one
            step.

    Raises:
        ConfigError: a value is out of range.
    """

    patience: PositiveInt = 3
    min_delta: NonNegativeFloat = 0.005
    cooldown: Proportion = 0.1

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def needs_validation(self) -> bool:
        return True

    def length(self, steps: int, flops_per_step: int) -> StageLength:
        return StageLength(steps, PlateauRule(self))


@dataclass(frozen=True)
class Budget(StopCriterion):
    """End the stage once it has used a budget; exactly one of the two is given.

    Args:
        flops: floating-point operations of the stage's training, counted from shapes
            (`fastgrow.growth.flops`). The number of steps that they allow is known beforehand, so
            the stage is simply shorter.
        seconds: seconds of the stage's training on this machine, including evaluations,
            checkpoints and the time before an interruption.

    Raises:
        ConfigError: neither or both are given, or one is not positive.
    """

    flops: PositiveFloat | None = None
    seconds: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if (self.flops is None) == (self.seconds is None):
            raise ConfigError("Budget: expected exactly one of flops and seconds")

    @property
    def tokens_are_planned(self) -> bool:
        return self.seconds is None

    def length(self, steps: int, flops_per_step: int) -> StageLength:
        if self.seconds is not None:
            return StageLength(steps, SecondsRule(self.seconds))
        assert self.flops is not None
        affordable = max(1, int(self.flops // flops_per_step))
        made = min(steps, affordable)
        decision = StopDecision(
            "flops" if affordable < steps else "tokens",
            made,
            evidence={"flops": made * flops_per_step, "budget": self.flops},
        )
        return StageLength(made, decision=decision)


# -- rules: the state of a criterion while its stage runs --------------------------------------


class PlateauRule:
    """Observes the validation loss of a running stage.

    Args:
        plateau: defines what counts as an improvement.
    """

    reason = "plateau"
    used = None

    def __init__(self, plateau: Plateau) -> None:
        self.cooldown = plateau.cooldown
        self._plateau = plateau
        self._best = math.inf
        self._since_best: list[list[float]] = []

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int = 0
    ) -> dict[str, Any] | None:
        """Return the best loss, and the steps and losses since, after `patience` evaluations."""
        if validation_loss is None:
            return None
        if validation_loss < self._best - self._plateau.min_delta:
            self._best, self._since_best = validation_loss, []
            return None
        self._since_best.append([step, validation_loss])
        if len(self._since_best) < self._plateau.patience:
            return None
        return {"best_loss": self._best, "losses_since": self._since_best}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since_best": self._since_best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best = state["best"]
        self._since_best = [list(pair) for pair in state["since_best"]]


class SecondsRule:
    """Observes the time of a running stage.

    Args:
        seconds: seconds that the stage may take, its cooldown included.
        clock: returns the present time in seconds.
    """

    reason = "seconds"
    cooldown = 0.1

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._started = clock()

    @property
    def used(self) -> float:
        """Share of the seconds that are used up."""
        return (self._clock() - self._started) / self._seconds

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int
    ) -> dict[str, Any] | None:
        """Return the time spent, once the steps of the cooldown would use up the seconds left."""
        spent = self._clock() - self._started
        if spent * (1 + cooldown / step) < self._seconds:
            return None
        return {"seconds": spent, "budget": self._seconds}

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self._clock() - self._started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._started = self._clock() - state["spent"]

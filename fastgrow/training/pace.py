"""How fast a training learns at each step, and at which step it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from fastgrow.training.config import TrainConfig
from fastgrow.training.schedule import learning_rate


class StopRule(Protocol):
    """Decides from what a training has seen that it may end; part of the trainer's state."""

    @property
    def cooldown(self) -> float:
        """Steps that follow the decision, as a share of those made before it."""

    @property
    def used(self) -> float | None:
        """Share of its budget that is used up, where it has one of its own; else None."""

    def observe(self, step: int, validation_loss: float | None) -> dict[str, Any] | None:
        """Look at a finished step.

        Args:
            step: steps made.
            validation_loss: nats a token, at steps that end with an evaluation.

        Returns:
            The evidence, as JSON values, if the training may end; None if it goes on.
        """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Pace:
    """Learning rate and end of a training.

    Without a rule the rate warms up and falls by half a cosine over a known number of steps. With
    one it is constant after its warm-up until the rule decides, and then falls in a line to its
    minimum over the cooldown, at least one step. The warm-up is its share of the steps or of the
    rule's budget, what ends sooner, for the steps may be no more than a bound. A rule that never
    decides is cut short in time for its cooldown to fit.

    Args:
        config: of the training.
        steps: its length, or the most it may take.
        rule: what may end it earlier.

    Attributes:
        steps: the step at which the training ends, as far as is known.
        decision: what the rule said; None before that and without a rule.
    """

    def __init__(self, config: TrainConfig, steps: int, rule: StopRule | None = None) -> None:
        self.steps = steps
        self.decision: dict[str, Any] | None = None
        self._planned = steps
        self._config = config
        self._rule = rule

    def rate(self, step: int) -> float:
        """The learning rate of the step about to be made, 0 … steps - 1."""
        config = self._config
        if self._rule is None:
            return learning_rate(
                step,
                self.steps,
                peak=config.lr,
                warmup=config.warmup,
                min_ratio=config.min_lr_ratio,
            )
        if self.decision is None:
            return self._plateau(step)
        decided = self.decision["step"]
        progress = (step - decided + 1) / (self.steps - decided)
        return self._plateau(decided) * (1 - (1 - config.min_lr_ratio) * progress)

    def observe(self, step: int, validation_loss: float | None) -> bool:
        """Look at a finished step; True if it brought the decision."""
        if self._rule is None or self.decision is not None:
            return False
        if step >= self._planned:
            # The bound leaves no step for a cooldown, or none is wanted.
            self.decision = {"reason": "tokens", "step": step, "last_step": step}
            return False
        evidence = self._rule.observe(step, validation_loss)
        if evidence is None and step >= math.floor(self._planned / (1 + self._rule.cooldown)):
            evidence = {"reason": "tokens"}
        if evidence is None:
            return False
        last = min(self._planned, step + max(1, math.ceil(step * self._rule.cooldown)))
        self.decision = {**evidence, "step": step, "last_step": last}
        self.steps = last
        return True

    def state_dict(self) -> dict[str, Any] | None:
        """What a resumed training needs; None without a rule."""
        if self._rule is None:
            return None
        return {"decision": self.decision, "rule": self._rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Put back what `state_dict` returned."""
        if self._rule is None or state is None:
            return
        self._rule.load_state_dict(state["rule"])
        self.decision = state["decision"]
        if self.decision is not None:
            self.steps = self.decision["last_step"]

    def _plateau(self, step: int) -> float:
        warmup = self._config.warmup
        warmed = (step + 1) / max(round(warmup * self._planned), 1)
        used = None if self._rule is None else self._rule.used
        if used is not None and warmup > 0:
            warmed = max(warmed, used / warmup)
        return self._config.lr * min(1.0, warmed)

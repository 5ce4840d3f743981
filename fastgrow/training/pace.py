"""How fast a training learns at each step, and at which step it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastgrow.errors import ConfigError
from fastgrow.training.config import TrainConfig
from fastgrow.training.schedule import cosine, decay_begins, line, wsd

# The reason of a decision that the user has made.
FINISH = "finish"


class StopRule(Protocol):
    """Decides from what a training has seen that it may end; part of the trainer's state."""

    @property
    def cooldown(self) -> float:
        """Steps that follow the decision, as a share of those made, where each stage has its own
        schedule."""

    @property
    def used(self) -> float | None:
        """Share of its budget that is used up, where it has one of its own; else None."""

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int
    ) -> dict[str, Any] | None:
        """Look at a finished step.

        Args:
            step: steps made.
            validation_loss: nats a token, at steps that end with an evaluation.
            cooldown: steps that would follow a decision now.

        Returns:
            The evidence, as JSON values, if the training may end; None if it goes on.
        """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a training stands in a run of several that share one schedule of the learning rate.

    Attributes:
        before: steps that the run has made.
        after: steps that it plans to make afterwards.
        warmup_of: steps that the warm-up is a share of, the run's as it was planned at first; None
            for all of the run.
    """

    before: int = 0
    after: int = 0
    warmup_of: int | None = None


class Pace:
    """Learning rate and end of a training.

    What "wsd" and "cosine" count in is the run that the training is a part of. The run's length is
    what is planned, so it is shorter from then on where an earlier part has ended early.

    A rule may end the training before its steps are made. In the middle of a run that shares a
    schedule it ends at once, at the rate that it has. In its last part, and under "per-stage", a
    decay follows: the rate is constant after its warm-up until the rule decides, and then falls in
    a line. A rule that never decides is cut short in time for the decay to fit. The warm-up is its
    share of the steps or of the rule's budget, what ends sooner, for the steps may be no more than
    a bound. Where the user wants the run to end, the decay follows in any part, and may take more
    steps than the part was planned for.

    Args:
        config: of the training.
        steps: its length, or the most it may take.
        rule: what may end it earlier.
        place: in the run.
        finish: asked after each step, with its number, whether the user wants the run to end; then
            its decay begins.

    Attributes:
        steps: the step at which the training ends, as far as is known.
        decision: what the rule said, or that the user asked; None before that.

    Raises:
        ConfigError: there is a rule, and a cosine that has to know the run's length.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps: int,
        rule: StopRule | None = None,
        place: Place | None = None,
        finish: Callable[[int], bool] | None = None,
    ) -> None:
        if rule is not None and config.schedule == "cosine":
            raise ConfigError(
                "a cosine over the run has to know its length: a stage that ends by a plateau or "
                'by seconds goes with schedule "wsd" or "per-stage"'
            )
        self.steps = steps
        self.decision: dict[str, Any] | None = None
        self._planned = steps
        self._config = config
        self._rule = rule
        self._place = Place() if place is None or config.schedule == "per-stage" else place
        self._finish = finish

    @property
    def is_last(self) -> bool:
        """Whether nothing of the run's schedule is left after this training."""
        return not self._place.after or self._asked

    @property
    def _asked(self) -> bool:
        return self.decision is not None and self.decision["reason"] == FINISH

    @property
    def _whole(self) -> int:
        """Steps of the run, as planned."""
        return self._place.before + self._planned + self._place.after

    def rate(self, step: int) -> float:
        """The learning rate of the step about to be made, 0 … steps - 1."""
        decision, per_stage = self.decision, self._config.schedule == "per-stage"
        if decision is None or (decision["reason"] == "tokens" and not per_stage):
            return self._undecided(step)
        decided = decision["step"]
        peak = self._undecided(decided)
        if per_stage:
            # The last step lands on the minimum.
            progress = (step - decided + 1) / (self.steps - decided)
            return peak * (1 - (1 - self._config.min_lr_ratio) * progress)
        least = min(peak, self._config.lr * self._config.min_lr_ratio)
        return least + (peak - least) * line(step - decided, self.steps - decided, 0.0)

    def observe(self, step: int, validation_loss: float | None) -> bool:
        """Look at a finished step; True if it brought a decision that changes what follows."""
        if self.decision is not None:
            return False
        if self._finish is not None and self._finish(step):
            return self._decide({"reason": FINISH}, step)
        if self._rule is None:
            return False
        if step >= self._planned:
            # The bound leaves no step for a cooldown, or none is wanted.
            self.decision = {"reason": "tokens", "step": step, "last_step": step}
            return False
        cooldown = 0 if self._place.after else self._cooldown(step)
        evidence = self._rule.observe(step, validation_loss, cooldown)
        if evidence is None and not self._place.after and step >= self._latest_decision:
            evidence = {"reason": "tokens"}
        return evidence is not None and self._decide(evidence, step)

    def _decide(self, evidence: dict[str, Any], step: int) -> bool:
        last = step + max(1, self._cooldown(step))
        if evidence["reason"] == FINISH:
            last = min(last, self._planned + self._place.after)
        elif self._place.after:
            last = step
        else:
            used = None if self._rule is None else self._rule.used
            if used:
                # A decay that is a share of the whole run may be more than the budget has left.
                last = min(last, step + max(1, math.floor(step * (1 - used) / used)))
            last = min(last, self._planned)
        self.decision = {**evidence, "step": step, "last_step": last}
        self.steps = last
        return True

    def _cooldown(self, step: int) -> int:
        """Steps of a decay that begins after `step` steps of this training."""
        if self._config.schedule == "wsd":
            decay = self._config.decay
            if decay == 1:
                return self._planned - step
            return math.ceil((self._place.before + step) * decay / (1 - decay))
        return 0 if self._rule is None else math.ceil(step * self._rule.cooldown)

    @property
    def _latest_decision(self) -> int:
        """Steps after which the decay has to begin."""
        if self._config.schedule == "wsd":
            return decay_begins(self._whole, self._config.decay) - self._place.before
        assert self._rule is not None
        return math.floor(self._planned / (1 + self._rule.cooldown))

    @property
    def _warmup(self) -> float:
        """Share of the run's steps, as planned, that warm up."""
        of = self._place.warmup_of
        if of is None or of == self._whole:
            return self._config.warmup
        return self._config.warmup * of / self._whole

    def _undecided(self, step: int) -> float:
        """The rate as long as nothing ends the training early."""
        config = self._config
        if self._rule is not None:
            waits = not self._place.after and step < self._latest_decision
            if waits or config.schedule == "per-stage":
                return self._plateau(step)
        shape = {"peak": config.lr, "warmup": self._warmup, "min_ratio": config.min_lr_ratio}
        at = self._place.before + step
        if config.schedule == "wsd":
            return wsd(at, self._whole, decay=config.decay, **shape)
        return cosine(at, self._whole, **shape)

    def _plateau(self, step: int) -> float:
        at = self._place.before + step
        warmed = (at + 1) / max(round(self._warmup * self._whole), 1)
        used = None if self._rule is None else self._rule.used
        if used is not None and self._config.warmup > 0:
            warmed = max(warmed, used / self._config.warmup)
        return self._config.lr * min(1.0, warmed)

    def state_dict(self) -> dict[str, Any] | None:
        """What a resumed training needs; None where there is nothing to decide."""
        if self._rule is None and self.decision is None:
            return None
        rule = None if self._rule is None else self._rule.state_dict()
        return {"decision": self.decision, "rule": rule}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Put back what `state_dict` returned."""
        if state is None:
            return
        if self._rule is not None:
            self._rule.load_state_dict(state["rule"])
        self.decision = state["decision"]
        if self.decision is not None:
            self.steps = self.decision["last_step"]

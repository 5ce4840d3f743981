"""The learning rate of a training at each step, and the step at which the training ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastgrow.errors import ConfigError
from fastgrow.training.config import TrainConfig
from fastgrow.training.schedule import cosine, decay_begins, line, wsd

# The reasons of decisions that no stop rule makes: the user ended the run, or the planned tokens
# were used up.
FINISH, TOKENS = "finish", "tokens"


@dataclass(frozen=True)
class StopDecision:
    """Why and when a training ends, and the evidence for it.

    Attributes:
        reason: "plateau", "seconds", "flops", "tokens" or "finish", or the reason of another
            `StopRule`.
        step: number of steps after which the decision was made.
        last_step: number of steps after which the training ends, its decay included; None if the
            decision was made before the training.
        evidence: what the rule observed, as JSON values.
    """

    reason: str
    step: int
    last_step: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as flat JSON values, as in `growth.json` and in checkpoints."""
        if self.last_step is None:
            return {"reason": self.reason, "step": self.step, **self.evidence}
        steps = {"step": self.step, "last_step": self.last_step}
        return {"reason": self.reason, **self.evidence, **steps}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StopDecision:
        """Return the decision that `to_dict` returned as `values`."""
        evidence = dict(values)
        reason, step = evidence.pop("reason"), evidence.pop("step")
        return cls(reason, step, evidence.pop("last_step", None), evidence)


class StopRule(Protocol):
    """Decides during a training that it may end; its state is part of the trainer's."""

    @property
    def reason(self) -> str:
        """The reason of the rule's decision, one word."""

    @property
    def cooldown(self) -> float:
        """Under "per-stage": steps that follow the decision, as a share of the steps made."""

    @property
    def used(self) -> float | None:
        """Share of the rule's own budget that is used up; None if it has none."""

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int
    ) -> dict[str, Any] | None:
        """Observe a finished step.

        Args:
            step: number of steps made.
            validation_loss: nats per token, at steps that end with an evaluation.
            cooldown: number of steps that would follow a decision now.

        Returns:
            The evidence, as JSON values, if the training may end; None if it continues.
        """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class RunPosition:
    """The position of a training in a run of several that share one learning-rate schedule.

    Attributes:
        before: number of steps that the run has made.
        after: number of steps that the run plans to make after this training.
        warmup_of: number of steps that the warm-up is a share of: those of the run as first
            planned; None for the present length of the run.
    """

    before: int = 0
    after: int = 0
    warmup_of: int | None = None


class LRController:
    """Computes the learning rate of each step of a training, and decides when the training ends.

    "wsd" and "cosine" count the steps of the run that the training is a part of. The length of the
    run is the planned one, so it becomes shorter if an earlier part ended early.

    A rule may end the training before all of its steps are made. In the middle of a run that shares
    a schedule the training then ends at once, at its present learning rate. In the last part of a
    run, and under "per-stage", a decay follows: the learning rate is constant after its warm-up
    until the rule decides, and then falls linearly. If the rule has not decided, the decay starts
    in time to end with the planned steps. The warm-up is a share of the steps or of the rule's
    budget, whichever ends sooner, because the steps may be an upper bound only. If the user ends
    the run, the decay follows in any part, and may take more steps than the part was planned for.

    Args:
        config: settings of the training.
        steps: number of steps, or the upper bound of it.
        rule: may end the training earlier.
        position: position in the run; None for a training on its own.
        finish: called after each step with its number; True if the user wants the run to end, then
            its decay starts.

    Attributes:
        steps: the number of steps after which the training ends, as far as it is known.
        decision: the decision of the rule or of the user, or with a rule that the planned tokens
            were used up; None before that.

    Raises:
        ConfigError: there is a rule, and the schedule is "cosine", which needs the run's length.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps: int,
        rule: StopRule | None = None,
        position: RunPosition | None = None,
        finish: Callable[[int], bool] | None = None,
    ) -> None:
        if rule is not None and config.schedule == "cosine":
            raise ConfigError(
                'train.schedule: "cosine" needs the length of the run beforehand, but a stage that '
                'ends by a plateau or by seconds has none; use "wsd" or "per-stage"'
            )
        self.steps = steps
        self.decision: StopDecision | None = None
        self._planned = steps
        self._config = config
        self._rule = rule
        per_stage = config.schedule == "per-stage"
        self._position = RunPosition() if position is None or per_stage else position
        self._finish = finish

    @property
    def is_last(self) -> bool:
        """Whether this training is the last part of the run's schedule."""
        return not self._position.after or self._finishes

    @property
    def _finishes(self) -> bool:
        return self.decision is not None and self.decision.reason == FINISH

    @property
    def _whole(self) -> int:
        """Number of steps of the run, as planned."""
        return self._position.before + self._planned + self._position.after

    def rate(self, step: int) -> float:
        """Return the learning rate of the step about to be made, 0 … steps - 1."""
        decision, per_stage = self.decision, self._config.schedule == "per-stage"
        if decision is None or (decision.reason == TOKENS and not per_stage):
            return self._undecided(step)
        decided = decision.step
        peak = self._undecided(decided)
        if per_stage:
            # The last step reaches the minimum.
            progress = (step - decided + 1) / (self.steps - decided)
            return peak * (1 - (1 - self._config.min_lr_ratio) * progress)
        least = min(peak, self._config.lr * self._config.min_lr_ratio)
        return least + (peak - least) * line(step - decided, self.steps - decided, 0.0)

    def observe(self, step: int, validation_loss: float | None) -> bool:
        """Observe a finished step; True if it led to a decision that changes the steps after it."""
        if self.decision is not None:
            return False
        if self._finish is not None and self._finish(step):
            return self._decide(FINISH, {}, step)
        if self._rule is None:
            return False
        if step >= self._planned:
            # The bound leaves no step for a cooldown, or the rule wants none.
            self.decision = StopDecision(TOKENS, step, step)
            return False
        cooldown = 0 if self._position.after else self._cooldown(step)
        evidence = self._rule.observe(step, validation_loss, cooldown)
        if evidence is not None:
            return self._decide(self._rule.reason, evidence, step)
        if not self._position.after and step >= self._latest_decision:
            return self._decide(TOKENS, {}, step)
        return False

    def _decide(self, reason: str, evidence: Mapping[str, Any], step: int) -> bool:
        last = step + max(1, self._cooldown(step))
        if reason == FINISH:
            last = min(last, self._planned + self._position.after)
        elif self._position.after:
            last = step
        else:
            used = None if self._rule is None else self._rule.used
            if used:
                # A decay that is a share of the whole run may exceed what is left of the budget.
                last = min(last, step + max(1, math.floor(step * (1 - used) / used)))
            last = min(last, self._planned)
        self.decision = StopDecision(reason, step, last, evidence)
        self.steps = last
        return True

    def _cooldown(self, step: int) -> int:
        """Return the length of a decay that starts after `step` steps of this training."""
        if self._config.schedule == "wsd":
            decay = self._config.decay
            if decay == 1:
                return self._planned - step
            return math.ceil((self._position.before + step) * decay / (1 - decay))
        return 0 if self._rule is None else math.ceil(step * self._rule.cooldown)

    @property
    def _latest_decision(self) -> int:
        """The number of steps after which the decay has to start."""
        if self._config.schedule == "wsd":
            return decay_begins(self._whole, self._config.decay) - self._position.before
        assert self._rule is not None
        return math.floor(self._planned / (1 + self._rule.cooldown))

    @property
    def _warmup(self) -> float:
        """The share of the run's planned steps over which the learning rate warms up."""
        of = self._position.warmup_of
        if of is None or of == self._whole:
            return self._config.warmup
        return self._config.warmup * of / self._whole

    def _undecided(self, step: int) -> float:
        """Return the learning rate as long as nothing ends the training early."""
        config = self._config
        if self._rule is not None:
            waits = not self._position.after and step < self._latest_decision
            if waits or config.schedule == "per-stage":
                return self._constant(step)
        shape = {"peak": config.lr, "warmup": self._warmup, "min_ratio": config.min_lr_ratio}
        at = self._position.before + step
        if config.schedule == "wsd":
            return wsd(at, self._whole, decay=config.decay, **shape)
        return cosine(at, self._whole, **shape)

    def _constant(self, step: int) -> float:
        """Return the constant learning rate, or the warm-up to it."""
        at = self._position.before + step
        warmed = (at + 1) / max(round(self._warmup * self._whole), 1)
        used = None if self._rule is None else self._rule.used
        if used is not None and self._config.warmup > 0:
            warmed = max(warmed, used / self._config.warmup)
        return self._config.lr * min(1.0, warmed)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state for resuming; None if there is neither a rule nor a decision."""
        if self._rule is None and self.decision is None:
            return None
        rule = None if self._rule is None else self._rule.state_dict()
        decision = None if self.decision is None else self.decision.to_dict()
        return {"decision": decision, "rule": rule}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned."""
        if state is None:
            return
        if self._rule is not None:
            self._rule.load_state_dict(state["rule"])
        if state["decision"] is None:
            self.decision = None
            return
        self.decision = StopDecision.from_dict(state["decision"])
        if self.decision.last_step is not None:
            self.steps = self.decision.last_step

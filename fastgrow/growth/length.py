"""How long a stage trains: its tokens, or less where `until` says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastgrow.growth.active import StageShape
from fastgrow.growth.flops import stack_flops
from fastgrow.growth.roles import roles
from fastgrow.growth.stage import Stage
from fastgrow.growth.when import Budget, Plateau, PlateauRule, SecondsRule
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig
from fastgrow.training.pace import StopRule


@dataclass(frozen=True)
class Length:
    """How long a stage trains.

    Attributes:
        steps: of the optimizer, or the most of them where there is a rule.
        rule: what may end it earlier, from what training shows.
        decision: how `steps` came from a budget in FLOPs, as JSON values; None otherwise.
    """

    steps: int
    rule: StopRule | None = None
    decision: dict[str, Any] | None = None


def stage_length(
    stage: Stage, shape: StageShape, config: DecoderConfig, train: TrainConfig, seq_len: int
) -> Length:
    """The length of a stage that trains on windows of `seq_len` tokens."""
    steps = train.steps_for(stage.tokens, seq_len)
    until = stage.until
    if isinstance(until, Plateau):
        return Length(steps, PlateauRule(until))
    if not isinstance(until, Budget):
        return Length(steps)
    if until.seconds is not None:
        return Length(steps, SecondsRule(until.seconds))
    assert until.flops is not None
    a_token = stack_flops(config, seq_len, roles(shape, stage.lora, config), head=shape.head).total
    a_step = a_token * train.batch_size * train.accumulate * seq_len
    affordable = max(1, int(until.flops // a_step))
    decision = {
        "reason": "flops" if affordable < steps else "tokens",
        "step": min(steps, affordable),
        "flops": min(steps, affordable) * a_step,
        "budget": until.flops,
    }
    return Length(min(steps, affordable), decision=decision)

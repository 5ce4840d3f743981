"""The length of a stage, from its tokens and its stop criterion."""

from __future__ import annotations

from fastgrow.growth.active import StageShape
from fastgrow.growth.flops import stack_flops
from fastgrow.growth.roles import roles
from fastgrow.growth.stage import Stage
from fastgrow.growth.stop_criteria import StageLength
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig


def stage_length(
    stage: Stage, shape: StageShape, config: DecoderConfig, train: TrainConfig, seq_len: int
) -> StageLength:
    """Return the length of a stage that trains on windows of `seq_len` tokens."""
    steps = train.steps_for(stage.tokens, seq_len)
    if stage.until is None:
        return StageLength(steps)
    stack = roles(shape, stage.lora, config)
    flops_per_token = stack_flops(config, seq_len, stack, head=shape.head).total
    tokens_per_step = train.batch_size * train.accumulate * seq_len
    return stage.until.length(steps, flops_per_token * tokens_per_step)

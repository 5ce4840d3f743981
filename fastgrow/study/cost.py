"""Count the cost of a training; `fastgrow.growth.flops` documents how."""

from __future__ import annotations

from fastgrow.growth import stage_shape
from fastgrow.growth.flops import stack_flops
from fastgrow.growth.plan import make_plan
from fastgrow.growth.roles import Role, roles
from fastgrow.nn import DecoderConfig
from fastgrow.study.controls import Plan
from fastgrow.training import TrainConfig


def forward_flops(config: DecoderConfig, depth: int, seq_len: int) -> int:
    """Return the FLOPs per token of a forward pass through `depth` blocks and the head."""
    return stack_flops(config, seq_len, [Role()] * depth, head=False).forward


def stage_flops(config: DecoderConfig, plan: Plan, seq_len: int) -> list[int]:
    """Return the FLOPs per token of a training step, for each stage of a plan."""
    flops = []
    for index, stage in enumerate(plan.schedule.stages):
        shape = stage_shape(plan.schedule, index, config, plan.random_blocks)
        stack = roles(shape, stage.lora, config)
        flops.append(stack_flops(config, seq_len, stack, head=shape.head).total)
    return flops


def plan_flops(config: DecoderConfig, plan: Plan, seq_len: int) -> int:
    """Return the FLOPs of a whole plan, if no stage ends before its tokens are used up."""
    each = stage_flops(config, plan, seq_len)
    return sum(f * stage.tokens for f, stage in zip(each, plan.schedule.stages, strict=True))


def peak_bytes(config: DecoderConfig, plan: Plan, train: TrainConfig) -> int:
    """Return the peak memory of a plan's training in bytes, counted as in `fastgrow plan`."""
    return make_plan(config, plan.schedule, train, measure=False).peak

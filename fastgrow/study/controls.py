"""Controls: what a grown model has to be judged against, each a change of its schedule.

A control runs through the same function (`fastgrow.grow`) with the same texts on as many tokens,
and differs from the grown model in what its name says alone. Further ones are no schedules: a
random frozen table and 16-bit codes are changes of a training's substrate (`codes: random-64-float`
or `id-16`), a trainable table one of its model (`embedding: trainable`), random experts are
trainings on a `part` of the texts, and a model of equal total size is one of a larger `d_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fastgrow.growth import GrowthSchedule, LoRA, Stage, stage_shape
from fastgrow.growth.active import active_parameters
from fastgrow.nn import DecoderConfig


@dataclass(frozen=True)
class Plan:
    """What is trained: blocks that are there at random from the beginning, then the stages."""

    schedule: GrowthSchedule
    random_blocks: int = 0


Control = Callable[[GrowthSchedule, DecoderConfig], Plan]


def _grown(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """The schedule as it is."""
    return Plan(schedule)


def _never_grown(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """The first stage's blocks alone, on the tokens of all stages."""
    return Plan(schedule.as_never_grown())


def _monolith(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """All blocks at once, everything active, on the tokens of all stages."""
    return Plan(schedule.as_monolith())


def _frozen_without_growth(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """The last stage's blocks on random frozen ones, on the tokens of all stages."""
    last = schedule.stages[-1]
    top = Stage(last.blocks, schedule.tokens, lr=last.lr)
    return Plan(GrowthSchedule([top]), schedule.n_blocks - last.blocks)


def _copies(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """The first stage, then copies of its blocks up to the full depth, and nothing frozen.

    G_stack (arXiv 2405.15319).
    """
    first, *rest = schedule.stages
    if not rest:
        return Plan(schedule)
    tokens = sum(stage.tokens for stage in rest)
    blocks = schedule.n_blocks - first.blocks
    stacked = Stage(blocks, tokens, insertion="copy", train="all", lr=rest[0].lr)
    return Plan(replace(schedule, stages=[first, stacked]))


def _lora_phases(schedule: GrowthSchedule, config: DecoderConfig) -> Plan:
    """Half of every later stage's tokens go to a phase of LoRA on all blocks, of equal budget.

    Growing Transformers v3 (arXiv 2507.07129): phases in which as many numbers train
    as in a stage.
    """
    stages = [schedule.stages[0]]
    for index, stage in enumerate(schedule.stages[1:], start=1):
        shape = stage_shape(schedule, index, config)
        budget = active_parameters(stage, shape, config)
        half = max(1, stage.tokens // 2)
        stages.append(replace(stage, tokens=max(1, stage.tokens - half)))
        stages.append(Stage(0, half, train="none", lora=LoRA(budget=budget), lr=stage.lr))
    return Plan(replace(schedule, stages=stages))


def _joint_polish(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """A fifth of the tokens of every stage is kept for the end, where all blocks train together."""
    return Plan(schedule.with_polish())


def _windows(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """The blocks of the stage before train on beside a stage's own: windows that overlap."""
    stages = [schedule.stages[0]]
    for before, stage in zip(schedule.stages, schedule.stages[1:], strict=False):
        stages.append(replace(stage, window=stage.blocks + before.blocks))
    return Plan(replace(schedule, stages=stages))


ControlName = Literal[
    "grown",
    "never-grown",
    "monolith",
    "frozen-without-growth",
    "copies",
    "lora-phases",
    "joint-polish",
    "windows",
]
CONTROLS: dict[ControlName, Control] = {
    "grown": _grown,
    "never-grown": _never_grown,
    "monolith": _monolith,
    "frozen-without-growth": _frozen_without_growth,
    "copies": _copies,
    "lora-phases": _lora_phases,
    "joint-polish": _joint_polish,
    "windows": _windows,
}
"""Name of a control → what it makes of a schedule for a model."""

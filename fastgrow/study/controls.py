"""Controls: models that a grown model is compared with, each made by changing its schedule.

A control is trained by the same function (`fastgrow.grow`) on the same texts and the same number of
tokens, and differs from the grown model only in what its name states. Other controls are not
changes of the schedule: a random frozen table and 16-bit codes change a training's substrate
(`codes: random-64-float` or `id-16`), a trainable table changes its model (`embedding: trainable`),
random experts are trainings on a `part` of the texts, and a model of equal total size has a larger
`d_model`.
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
    """Random blocks that the model has from the beginning, and the stages that follow."""

    schedule: GrowthSchedule
    random_blocks: int = 0


Control = Callable[[GrowthSchedule, DecoderConfig], Plan]


def _grown(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Return the unchanged schedule."""
    return Plan(schedule)


def _never_grown(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Train the first stage's blocks only, on the tokens of all stages."""
    return Plan(schedule.as_never_grown())


def _monolith(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Train all blocks from the beginning, everything active, on the tokens of all stages."""
    return Plan(schedule.as_monolith())


def _frozen_without_growth(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Train the last stage's blocks on top of random frozen blocks, on the tokens of all stages."""
    last = schedule.stages[-1]
    top = Stage(last.blocks, schedule.tokens, lr=last.lr)
    return Plan(GrowthSchedule([top]), schedule.n_blocks - last.blocks)


def _copies(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Run the first stage, then add copies of its blocks up to the full depth, and freeze nothing.

    This is G_stack (arXiv 2405.15319).
    """
    first, *rest = schedule.stages
    if not rest:
        return Plan(schedule)
    tokens = sum(stage.tokens for stage in rest)
    blocks = schedule.n_blocks - first.blocks
    stacked = Stage(blocks, tokens, insertion="copy", train="all", lr=rest[0].lr)
    return Plan(replace(schedule, stages=[first, stacked]))


def _lora_phases(schedule: GrowthSchedule, config: DecoderConfig) -> Plan:
    """Use half of every later stage's tokens for a phase of LoRA on all blocks.

    As in Growing Transformers v3 (arXiv 2507.07129), a phase has as many active parameters as its
    stage.
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
    """Move a fifth of every stage's tokens to a last stage in which all blocks train together."""
    return Plan(schedule.with_polish())


def _windows(schedule: GrowthSchedule, _: DecoderConfig) -> Plan:
    """Train the previous stage's blocks together with a stage's own, in overlapping windows."""
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
"""Controls by name: functions that change a schedule for a model."""

"""Controls: what a grown model has to be judged against, each a change of its schedule.

A control runs through the same function (`fastgrow.grow`) with the same texts, and differs from the
grown model in what its name says alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastgrow.growth import GrowthSchedule, Stage


@dataclass(frozen=True)
class Plan:
    """What is trained: blocks that are there at random from the beginning, then the stages."""

    schedule: GrowthSchedule
    random_blocks: int = 0


def _grown(schedule: GrowthSchedule) -> Plan:
    return Plan(schedule)


def _never_grown(schedule: GrowthSchedule) -> Plan:
    return Plan(schedule.as_never_grown())


def _monolith(schedule: GrowthSchedule) -> Plan:
    return Plan(schedule.as_monolith())


def _frozen_without_growth(schedule: GrowthSchedule) -> Plan:
    top = schedule.stages[-1].blocks
    return Plan(GrowthSchedule([Stage(top, schedule.tokens)]), schedule.n_blocks - top)


CONTROLS: dict[str, Callable[[GrowthSchedule], Plan]] = {
    "grown": _grown,
    "never-grown": _never_grown,
    "monolith": _monolith,
    "frozen-without-growth": _frozen_without_growth,
}
"""Name of a control → what it makes of a schedule.

- grown: the schedule as it is.
- never-grown: the first stage's blocks, trained on the tokens of all stages.
- monolith: all blocks at once, everything active, on the tokens of all stages.
- frozen-without-growth: the newest stage's blocks on top of random frozen ones, on the tokens of
  all stages.
"""

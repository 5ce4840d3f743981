"""Schedules are data, checked when they are made."""

from __future__ import annotations

import pytest

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, Stage


def test_controls_have_equal_tokens() -> None:
    schedule = GrowthSchedule([Stage(3, 100), Stage(2, 50), Stage(1, 25)])
    assert (schedule.n_blocks, schedule.tokens) == (6, 175)
    assert schedule.as_monolith().stages == (Stage(6, 175),)
    assert schedule.as_never_grown().stages == (Stage(3, 175),)


def test_equal_stages() -> None:
    schedule = GrowthSchedule.blocks(2, tokens=7, blocks_per_stage=3, insertion="identity")
    assert schedule.stages == (Stage(3, 7, "identity"), Stage(3, 7, "identity"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrowthSchedule([]), "at least one stage, got none"),
        (lambda: GrowthSchedule.blocks(0, tokens=5), "at least 1 stage, got 0"),
        (lambda: Stage(blocks=0), r"Stage\.blocks: 0 goes with lora.*expected at least 1 without"),
        (lambda: Stage(tokens=0), r"Stage\.tokens: expected at least 1, got 0"),
        (lambda: Stage(lr=-1.0), r"Stage\.lr: expected a positive number"),
        (lambda: Stage(insertion="middle"), r"Stage\.insertion: expected 'random' or"),  # type: ignore[arg-type]
    ],
)
def test_senseless_schedules_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

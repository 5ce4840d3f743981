"""The learning rate of a training and its end, with a rule that may end it earlier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fastgrow.errors import ConfigError
from fastgrow.training import TrainConfig
from fastgrow.training.lr_controller import LRController, RunPosition, StopDecision
from fastgrow.training.schedule import cosine, wsd

CONFIG = TrainConfig(schedule="per-stage", lr=1.0, warmup=0.1, min_lr_ratio=0.1)


class At:
    """A rule that decides at one step."""

    reason = "test"
    used: float | None = None

    def __init__(self, step: int | None, cooldown: float = 0.5) -> None:
        self.step, self.cooldown, self.seen = step, cooldown, 0

    def observe(
        self, step: int, validation_loss: float | None, cooldown: int
    ) -> dict[str, Any] | None:
        self.seen += 1
        return {} if step == self.step else None

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def rates(controller: LRController) -> list[float]:
    """The learning rates of all steps until the end, each step observed."""
    made = []
    while len(made) < controller.steps:
        made.append(controller.rate(len(made)))
        controller.observe(len(made), None)
    return made


def test_without_a_rule_it_is_the_cosine_over_all_steps() -> None:
    expected = [cosine(s, 30, peak=1.0, warmup=0.1, min_ratio=0.1) for s in range(30)]
    controller = LRController(CONFIG, 30)
    assert rates(controller) == expected
    assert controller.decision is None
    assert controller.state_dict() is None


WSD = TrainConfig(schedule="wsd", lr=2.0, warmup=0.1, decay=0.2, min_lr_ratio=0.0)


def test_warm_up_stable_decay() -> None:
    made = rates(LRController(WSD, 50))
    assert made[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert made[5:41] == [2.0] * 36
    # Linear from the peak at step 40 to 0 at step 50, which is not made.
    assert made[40:] == pytest.approx([0.2 * n for n in range(10, 0, -1)])
    least = rates(LRController(replace(WSD, min_lr_ratio=0.5), 50))
    assert least[40:] == pytest.approx([2 - 0.1 * n for n in range(10)])


def test_without_a_decay_the_rate_stays() -> None:
    assert rates(LRController(replace(WSD, decay=0.0, warmup=0.0), 7)) == [2.0] * 7
    only = rates(LRController(replace(WSD, decay=1.0, warmup=0.0), 4))
    assert only == pytest.approx([2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_the_parts_of_a_run_share_its_schedule(schedule: str) -> None:
    config = replace(WSD, schedule=schedule)
    parts = [
        LRController(config, 9, position=RunPosition(0, 41)),
        LRController(config, 34, position=RunPosition(9, 7)),
    ]
    parts.append(LRController(config, 7, position=RunPosition(43, 0)))
    assert [rate for part in parts for rate in rates(part)] == rates(LRController(config, 50))
    assert [part.is_last for part in parts] == [False, False, True]


def test_a_rule_in_the_middle_ends_its_part_at_once_and_the_run_is_shorter() -> None:
    controller = LRController(WSD, 400, At(20), RunPosition(5, 25))
    assert rates(controller) == pytest.approx(
        [wsd(5 + s, 430, peak=2.0, warmup=0.1, decay=0.2, min_ratio=0) for s in range(20)]
    )
    assert controller.decision == StopDecision("test", 20, 20)
    assert not controller.is_last


def test_a_rule_in_the_last_part_starts_the_decay() -> None:
    controller = LRController(replace(WSD, warmup=0.0), 400, At(25), RunPosition(15, 0))
    made = rates(controller)
    # Forty steps are made, so that ten are a fifth of all.
    assert made[:25] == [2.0] * 25
    assert made[25:] == pytest.approx([0.2 * n for n in range(10, 0, -1)])


def test_a_rule_that_never_decides_does_not_move_the_decay() -> None:
    controller = LRController(WSD, 30, At(None), RunPosition(20, 0))
    assert rates(controller) == rates(LRController(WSD, 30, position=RunPosition(20, 0)))
    assert controller.decision == StopDecision("tokens", 20, 30)


def test_finishing_decays_from_the_present_rate() -> None:
    asked = False
    controller = LRController(
        replace(WSD, warmup=0.0), 400, None, RunPosition(0, 50), lambda step: asked
    )
    made = []
    while len(made) < controller.steps:
        made.append(controller.rate(len(made)))
        asked = len(made) >= 8
        controller.observe(len(made), None)
    assert made == pytest.approx([2.0] * 8 + [2.0, 1.0])
    assert controller.decision == StopDecision("finish", 8, 10)
    assert controller.is_last
    resumed = LRController(
        replace(WSD, warmup=0.0), 400, None, RunPosition(0, 50), lambda step: asked
    )
    resumed.load_state_dict(controller.state_dict())
    assert (resumed.steps, resumed.rate(9)) == (10, 1.0)


def test_finishing_in_the_decay_keeps_the_planned_decay() -> None:
    controller = LRController(WSD, 50, finish=lambda step: True)
    planned = [controller.rate(step) for step in range(50)]
    assert controller.observe(45, None)
    assert controller.steps == 50
    assert [controller.rate(step) for step in range(45, 50)] == pytest.approx(planned[45:])


def test_finishing_at_the_end_of_a_part_has_a_complete_decay() -> None:
    """It uses steps that were planned for later parts, and never more than the run's."""
    # In a run of 46 steps the decay starts at step 37.
    for after, last, rate in ((100, 50, 2.0), (6, 46, 2 * 6 / 9)):
        controller = LRController(
            replace(WSD, warmup=0.0), 40, position=RunPosition(0, after), finish=lambda step: True
        )
        assert controller.observe(40, None)
        assert controller.steps == last
        assert controller.rate(40) == pytest.approx(rate)


def test_a_rule_in_a_part_within_the_decay_keeps_the_decay() -> None:
    controller = LRController(WSD, 5, At(None), RunPosition(45, 0))
    assert rates(controller) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    # The rule may still end it sooner, linearly from the present rate.
    early = LRController(WSD, 5, At(1), RunPosition(45, 0))
    assert len(rates(early)) <= 5


def test_finishing_does_not_change_a_decay_of_the_whole_run() -> None:
    config = replace(WSD, decay=1.0, warmup=0.0)
    controller = LRController(config, 10, finish=lambda step: step >= 4)
    assert rates(controller) == pytest.approx(rates(LRController(config, 10)))


def test_a_decay_takes_no_more_of_a_budget_than_is_left() -> None:
    class Half(At):
        used = 0.5

    controller = LRController(replace(WSD, warmup=0.0), 10**6, Half(4), RunPosition(1000, 0))
    assert len(rates(controller)) == 4 + 4


def test_the_rate_falls_to_its_minimum_and_not_below() -> None:
    config = replace(WSD, warmup=0.0, decay=0.5, min_lr_ratio=0.5)
    made = rates(LRController(config, 20, finish=lambda step: step >= 15))
    assert min(made) >= 1.0
    assert made == sorted(made, reverse=True)


def test_a_part_that_ends_in_the_warm_up_does_not_change_it() -> None:
    """The run is then shorter than planned, but the warm-up is not."""
    first = LRController(replace(WSD, warmup=0.2), 100, At(10), RunPosition(0, 100, warmup_of=200))
    second = LRController(replace(WSD, warmup=0.2), 100, None, RunPosition(10, 0, warmup_of=200))
    made = [*rates(first), *rates(second)]
    assert made[:40] == pytest.approx([0.05 * n for n in range(1, 41)])


def test_the_warm_up_is_no_share_of_a_bound() -> None:
    """If a stage is bounded by seconds, its steps are not its expected length."""
    first = LRController(WSD, 50, position=RunPosition(0, 10**9, warmup_of=50))
    assert rates(first)[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


def test_a_cosine_over_the_run_with_a_rule_raises() -> None:
    with pytest.raises(ConfigError, match="needs the length of the run beforehand"):
        LRController(replace(WSD, schedule="cosine"), 10, At(3))


def test_a_decision_starts_the_cooldown() -> None:
    controller = LRController(CONFIG, 100, At(20))
    made = rates(controller)
    # Half as many steps as were made, linearly from the peak to the minimum.
    assert len(made) == 30
    assert made[:11] == pytest.approx([n / 10 for n in range(1, 11)] + [1.0])
    assert made[10:20] == [1.0] * 10
    assert made[20:] == pytest.approx([1 - 0.09 * n for n in range(1, 11)])
    assert controller.decision == StopDecision("test", 20, 30)


def test_a_rule_that_never_decides_leaves_steps_for_its_cooldown() -> None:
    controller = LRController(CONFIG, 30, At(None))
    made = rates(controller)
    assert len(made) == 30
    assert controller.decision == StopDecision("tokens", 20, 30)
    assert made[-1] == pytest.approx(0.1)


def test_a_cooldown_is_at_least_a_step_and_never_beyond_the_end() -> None:
    none = LRController(CONFIG, 100, At(20, cooldown=0.0))
    assert len(rates(none)) == 21
    late = LRController(CONFIG, 10, At(6, cooldown=1.0))
    assert len(rates(late)) == 10


def test_a_decision_in_the_warm_up_cools_down_from_the_present_rate() -> None:
    controller = LRController(CONFIG, 100, At(4))
    made = rates(controller)
    assert made == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5 * 0.55, 0.5 * 0.1])


def test_the_warm_up_is_a_share_of_the_rules_budget_if_steps_are_a_bound() -> None:
    controller = LRController(CONFIG, 10**9, rule := At(None))
    for rule.used, expected in ((0.05, 0.5), (0.1, 1.0), (0.9, 1.0)):
        assert controller.rate(3) == pytest.approx(expected)


@pytest.mark.parametrize("stop", [10, 20, 25])
def test_it_resumes_from_its_state(stop: int) -> None:
    whole = rates(LRController(CONFIG, 100, At(20)))
    first = LRController(CONFIG, 100, At(20))
    for step in range(stop):
        first.observe(step + 1, None)
    second = LRController(CONFIG, 100, rule := At(20))
    second.load_state_dict(first.state_dict())
    assert rule.seen == min(stop, 20)
    made = [second.rate(stop)]
    for step in range(stop + 1, 30):
        second.observe(step, None)
        made.append(second.rate(step))
    assert made == whole[stop:]


@pytest.mark.parametrize(("steps", "cooldown"), [(1, 0.1), (10, 0.0)])
def test_an_end_without_a_cooldown_is_a_decision_too(steps: int, cooldown: float) -> None:
    controller = LRController(CONFIG, steps, At(None, cooldown))
    for step in range(steps):
        assert controller.decision is None
        assert not controller.observe(step + 1, None)
    assert controller.decision == StopDecision("tokens", steps, steps)

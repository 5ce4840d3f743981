"""Stages that end by a plateau, a budget or a user-defined criterion, also after a resume."""

from __future__ import annotations

import functools
import gc
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from growing import digest, make_model, make_train

from fastgrow.errors import ConfigError
from fastgrow.growth import (
    Budget,
    GrowthSchedule,
    Plateau,
    Stage,
    StageLength,
    StageResult,
    StopCriterion,
    StopDecision,
    grow,
    stage_shape,
)
from fastgrow.growth.flops import stack_flops
from fastgrow.growth.length import stage_length
from fastgrow.growth.roles import roles
from fastgrow.growth.stop_criteria import PlateauRule, SecondsRule
from fastgrow.training import TextData, Trainer

SLOW = make_train(pick="last", checkpoint_every=3, eval_every=2, schedule="per-stage")
# The text is random letters, so the loss soon stops improving by a tenth of a nat.
PLATEAU = Stage(1, 64 * 64, until=Plateau(patience=2, min_delta=0.1, cooldown=0.5))


def test_a_plateau_is_patience_evaluations_without_improvement() -> None:
    rule = PlateauRule(Plateau(patience=2, min_delta=0.1))
    losses = [(2, 3.0), (4, 2.5), (6, 2.45), (8, 2.3), (10, 2.25), (12, 2.21)]
    observed = [rule.observe(step, loss) for step, loss in losses]
    # 2.45 is no improvement on 2.5 by 0.1; 2.3 is, and the count starts again.
    assert observed[:-1] == [None] * 5
    assert observed[-1] == {"best_loss": 2.3, "losses_since": [[10, 2.25], [12, 2.21]]}
    assert rule.observe(13, None) is None, "steps without an evaluation are ignored"


def test_the_state_of_a_plateau_is_its_count() -> None:
    first, second = PlateauRule(Plateau(patience=2)), PlateauRule(Plateau(patience=2))
    for step, loss in ((1, 2.0), (2, 2.0)):
        assert first.observe(step, loss) is None
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.observe(3, 2.0) is not None


def test_seconds_spent_before_an_interruption_count() -> None:
    now = [100.0]
    rule = SecondsRule(11.0, lambda: now[0])
    now[0] = 106.0
    assert rule.observe(10, None, cooldown=1) is None
    state = rule.state_dict()
    assert state == {"spent": 6.0}
    # An hour later, in another process.
    now[0] = 3_706.0
    resumed = SecondsRule(11.0, lambda: now[0])
    resumed.load_state_dict(state)
    now[0] += 3.9
    assert resumed.observe(20, None, cooldown=2) is None
    # A tenth of the steps follow: at 10 s they end at 11 s.
    now[0] += 0.2
    evidence = resumed.observe(30, None, cooldown=3)
    assert evidence is not None
    assert evidence["seconds"] == pytest.approx(10.1)


def test_a_plateau_ends_a_stage_and_the_evidence_is_kept(substrate, data, tmp_path: Path) -> None:
    schedule = GrowthSchedule([PLATEAU, Stage(1, 256)])
    result = grow(make_model(substrate), data, schedule, train=SLOW, out=tmp_path, quiet=True)
    first, second = result.stages
    decision = first.decision
    assert decision is not None
    assert decision.reason == "plateau"
    losses = decision.evidence["losses_since"]
    assert len(losses) == 2
    assert all(loss > decision.evidence["best_loss"] - 0.1 for _, loss in losses)
    step = losses[-1][0]
    assert (decision.step, decision.last_step) == (step, step + -(-step // 2))
    assert first.tokens == decision.last_step * 64 < PLATEAU.tokens
    assert second.decision is None
    assert second.tokens == 256
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = [row for row in rows if row.get("event") == "cooldown"]
    assert [row["losses_since"] for row in events] == [losses]
    rates = {
        row["step"]: row["learning_rate"]
        for row in rows
        if row.get("stage") == "1/2" and "learning_rate" in row
    }
    assert rates[decision.last_step] == pytest.approx(SLOW.lr * SLOW.min_lr_ratio)


@pytest.mark.parametrize("since_decision", [-1, 0, 1])
def test_a_plateau_is_the_same_after_a_resume(
    substrate, data, tmp_path, monkeypatch, since_decision: int
) -> None:
    """Stopped before the decision, at the decision, and in the cooldown."""
    schedule, train = GrowthSchedule([PLATEAU, Stage(1, 256)]), replace(SLOW, checkpoint_every=1)

    def once(out: Path | None):
        return grow(make_model(substrate), data, schedule, train=train, out=out, quiet=True)

    whole = once(None)
    stop_after = whole.stages[0].decision.step + since_decision
    assert stop_after < whole.stages[0].decision.last_step
    step = Trainer._train_step

    def kill(trainer: Trainer, **options: bool) -> None:
        if trainer.step == stop_after:
            raise KeyboardInterrupt
        step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", kill)
        with pytest.raises(KeyboardInterrupt):
            once(tmp_path)
    resumed = once(tmp_path)
    assert digest(resumed.model) == digest(whole.model)
    assert resumed.stages[0].decision == whole.stages[0].decision


def test_a_plateau_needs_validation_text(substrate, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained before checking"))
    data = TextData.from_splits(
        train=["abc " * 20], validation=[], test=["abc"], substrate=substrate
    )
    with pytest.raises(ConfigError, match=r"stage 1: Stage\.until: Plateau needs validation text"):
        grow(make_model(substrate), data, GrowthSchedule([PLATEAU]), train=SLOW, quiet=True)


def test_a_budget_in_flops_sets_the_number_of_steps(substrate, data) -> None:
    model = make_model(substrate)
    probe = GrowthSchedule([Stage(1, 64)])
    shape = stage_shape(probe, 0, model.config)
    stack = roles(shape, None, model.config)
    a_step = 64 * stack_flops(model.config, 16, stack, head=True).total
    for budget, steps, reason in ((3.9 * a_step, 3, "flops"), (100 * a_step, 8, "tokens")):
        schedule = GrowthSchedule([Stage(1, 8 * 64, until=Budget(flops=budget))])
        result = grow(make_model(substrate), data, schedule, train=SLOW, quiet=True).stages[0]
        assert result.tokens == steps * 64
        assert result.decision.to_dict() == {
            "reason": reason,
            "step": steps,
            "flops": steps * a_step,
            "budget": budget,
        }


def test_flops_depend_on_the_active_set(substrate) -> None:
    config = make_model(substrate).config
    budget = Budget(flops=1e7)

    def steps(stage: Stage) -> int:
        shape = stage_shape(GrowthSchedule([stage]), 0, config, first_depth=3)
        return stage_length(stage, shape, config, SLOW, 16).steps

    new, everything = Stage(1, until=budget), Stage(1, train="all", until=budget)
    assert steps(new) > 1.3 * steps(everything)


def test_a_budget_in_seconds_ends_a_stage(substrate, data, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    rule = functools.partial(SecondsRule, clock=lambda: next(seconds) / 2)
    monkeypatch.setattr("fastgrow.growth.stop_criteria.SecondsRule", rule)
    schedule = GrowthSchedule([Stage(1, 10**9, until=Budget(seconds=11.0))])
    train = make_train(eval_every=10**6, schedule="per-stage")
    result = grow(make_model(substrate), data, schedule, train=train, quiet=True)
    (stage,) = result.stages
    assert stage.decision is not None
    assert stage.decision.reason == "seconds"
    # The cooldown, a tenth of the steps, uses up the 11 seconds.
    assert stage.decision.evidence["seconds"] == 10.0
    assert stage.tokens == 64 * stage.decision.last_step < 10**9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Plateau(patience=0),
            r"Plateau\.patience: expected an integer of at least 1, got 0",
        ),
        (
            lambda: Plateau(min_delta=-1.0),
            r"Plateau\.min_delta: expected a finite number of at least 0",
        ),
        (lambda: Plateau(cooldown=2.0), r"Plateau\.cooldown: expected a number between 0 and 1"),
        (lambda: Budget(), "exactly one of flops and seconds"),
        (lambda: Budget(flops=1.0, seconds=1.0), "exactly one of flops and seconds"),
        (lambda: Budget(seconds=0.0), r"Budget\.seconds: expected a finite number above 0"),
        (lambda: Budget(flops=float("inf")), r"Budget\.flops: expected a finite number above 0"),
    ],
)
def test_invalid_criteria_raise(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_criterion_may_be_user_defined(substrate, data, tmp_path: Path) -> None:
    class StepsRule:
        reason, cooldown, used = "steps", 0.0, None

        def __init__(self, steps: int) -> None:
            self.steps = steps

        def observe(self, step: int, validation_loss: float | None, cooldown: int) -> dict | None:
            return {"limit": self.steps} if step == self.steps else None

        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: object) -> None:
            pass

    @dataclass(frozen=True)
    class Steps(StopCriterion):
        steps: int = 2

        def length(self, steps: int, flops_per_step: int) -> StageLength:
            return StageLength(steps, StepsRule(self.steps))

    try:
        schedule = GrowthSchedule([Stage(1, 64 * 20, until=Steps(3)), Stage(1, 64 * 20)])
        result = grow(
            make_model(substrate), data, schedule, train=make_train(), out=tmp_path, quiet=True
        )
        assert result.stages[0].decision == StopDecision("steps", 3, 3, {"limit": 3})
        assert [stage.tokens for stage in result.stages] == [3 * 64, 20 * 64]
        (first, _) = json.loads((tmp_path / "run.json").read_text())["schedule"]
        assert first["until"]["steps"] == 3
        assert first["until"]["criterion"].endswith("Steps")
    finally:
        # A class below `StopCriterion` is a form of `until` in configurations until it is deleted.
        del Steps, schedule
        gc.collect()


def test_records_of_stages_are_flat_and_read_back() -> None:
    for decision in (
        StopDecision("plateau", 9, 12, {"best_loss": 2.0}),
        StopDecision("flops", 3, evidence={"flops": 5, "budget": 6.0}),
        None,
    ):
        result = StageResult(1, 2, 3, 4, 5, 6.0, {"test": 1.0}, None, decision=decision)
        values = json.loads(json.dumps(result.to_dict()))
        assert StageResult.from_dict(values) == result
    older = {"reason": "plateau", "best_loss": 2.0, "step": 9, "last_step": 12}
    assert StopDecision.from_dict(older).to_dict() == older
    del values["decision"], values["rank"]
    assert StageResult.from_dict(values) == result

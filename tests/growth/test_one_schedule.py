"""One learning-rate schedule over all stages: a run cut into stages is the same training."""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from growing import digest, make_data, make_model, make_train

from fastgrow.errors import ConfigError
from fastgrow.growth import (
    Budget,
    GrowthSchedule,
    LoRA,
    Moments,
    Plateau,
    Rate,
    Rates,
    Stage,
    StopDecision,
    grow,
)
from fastgrow.growth.folder import request_finish
from fastgrow.growth.setup import check_fits
from fastgrow.growth.stop_criteria import PlateauRule, SecondsRule, StageLength
from fastgrow.training import Mixture, Trainer
from fastgrow.training.run_folder import FolderInUse, sole_user

WHOLE = GrowthSchedule([Stage(2, 64 * 24)])
CUT = GrowthSchedule(
    [Stage(2, 64 * 5), Stage(0, 64 * 12, train="all"), Stage(0, 64 * 7, train="all")]
)


def rates_of(out: Path) -> list[float]:
    """The learning rate of every step of a run that logs each."""
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in rows if "learning_rate" in row]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "cosine", "min_lr_ratio": 0.1},
        {"optimizer": "muon"},
        {"batch_size": 2, "accumulate": 2},
    ],
    ids=str,
)
def test_cut_into_stages_it_is_the_same_training(
    substrate, data, tmp_path: Path, settings: dict[str, object]
) -> None:
    """Learning rate, data and optimizer state continue across a boundary that changes nothing."""
    train = make_train(pick="last", log_every=1, **settings)

    def run(name: str, schedule: GrowthSchedule) -> str:
        out = tmp_path / name
        return digest(
            grow(make_model(substrate), data, schedule, train=train, out=out, quiet=True).model
        )

    assert run("cut", CUT) == run("whole", WHOLE)
    rates = rates_of(tmp_path / "cut")
    assert rates == rates_of(tmp_path / "whole")
    assert len(rates) == 24
    assert max(rates) == train.lr
    assert rates[-1] < rates[-2] < 0.3 * train.lr


def test_a_mixture_continues_across_a_boundary_too(substrate, tmp_path: Path) -> None:
    one, two = make_data(substrate, tmp_path / "one"), make_data(substrate, tmp_path / "two")
    data, train = Mixture([(one, 0.7), (two, 0.3)]), make_train(pick="last")
    cut, whole = (
        digest(grow(make_model(substrate), data, schedule, train=train, quiet=True).model)
        for schedule in (CUT, WHOLE)
    )
    assert cut == whole


@pytest.mark.parametrize(
    "change",
    [
        {"moments": Moments(trained_on="fresh")},
        {"stages": [*CUT.stages[:2], replace(CUT.stages[2], rates=Rates(old=Rate(0.5)))]},
        {"stages": [*CUT.stages[:2], replace(CUT.stages[2], rates=Rates(head=Rate(warmup=0.9)))]},
        {"stages": [*CUT.stages[:2], replace(CUT.stages[2], lr=1e-4)]},
    ],
    ids=["state begun afresh", "old blocks slower", "head warmed up again", "another peak"],
)
def test_settings_that_may_change_at_a_boundary_do(substrate, data, change) -> None:
    train = make_train(pick="last")
    ends = [
        digest(grow(make_model(substrate), data, schedule, train=train, quiet=True).model)
        for schedule in (CUT, replace(CUT, **change))
    ]
    assert ends[0] != ends[1]


def test_per_stage_schedules_start_again_at_each_stage(substrate, data, tmp_path: Path) -> None:
    train = make_train(log_every=1, schedule="per-stage", warmup=0.0)
    grow(make_model(substrate), data, CUT, train=train, out=tmp_path, quiet=True)
    rates = rates_of(tmp_path)
    assert [rates[step] for step in (0, 5, 17)] == [train.lr] * 3


def test_only_the_last_stage_picks_the_best_weights(substrate, data, monkeypatch) -> None:
    """Other stages continue from the weights that the optimizer state belongs to."""
    kept = []
    restore = Trainer._restore_best

    def counting(trainer: Trainer) -> None:
        kept.append(bool(trainer._best_weights))
        restore(trainer)

    monkeypatch.setattr(Trainer, "_restore_best", counting)
    for schedule, expected in (
        ("wsd", [False, False, True]),
        ("per-stage", [True, True, True]),
    ):
        kept.clear()
        grow(make_model(substrate), data, CUT, train=make_train(schedule=schedule), quiet=True)
        assert kept == expected


# -- stages that end early ------------------------------------------------------------------------


def test_after_a_plateau_the_next_stage_continues_at_the_same_rate(
    substrate, data, tmp_path: Path
) -> None:
    """The text is random letters: nothing improves by a whole nat after the first evaluation."""
    stages = [
        Stage(1, 64 * 20, until=Plateau(patience=2, min_delta=1.0)),
        Stage(1, 64 * 20, "copy", train="all"),
    ]
    train = make_train(log_every=1, eval_every=2, decay=0.25, warmup=0.0)
    out = tmp_path / "run"
    result = grow(
        make_model(substrate), data, GrowthSchedule(stages), train=train, out=out, quiet=True
    )
    decision = result.stages[0].decision
    assert decision is not None
    assert decision.reason == "plateau"
    assert decision.last_step == decision.step, "no decay in the middle of the run"
    first = decision.step
    rates = rates_of(out)
    assert len(rates) == first + 20
    # The decay is a quarter of the run at its final length.
    begins = first + 20 - round((first + 20) / 4)
    assert rates[:begins] == [train.lr] * begins
    assert rates[begins] == train.lr > rates[begins + 1]


def test_a_plateau_in_the_last_stage_starts_the_decay(substrate, data, tmp_path: Path) -> None:
    stages = [Stage(1, 64 * 4), Stage(1, 64 * 400, until=Plateau(patience=2, min_delta=1.0))]
    train = make_train(log_every=1, eval_every=2, decay=0.25, warmup=0.0)
    out = tmp_path / "run"
    result = grow(
        make_model(substrate), data, GrowthSchedule(stages), train=train, out=out, quiet=True
    )
    decision = result.stages[1].decision
    assert decision is not None
    assert decision.reason == "plateau"
    whole = 4 + decision.last_step
    # A quarter of all steps, rounded up.
    assert decision.last_step - decision.step == -(-(4 + decision.step) // 3)
    rates = rates_of(out)
    assert len(rates) == whole
    begins = 4 + decision.step
    assert rates[:begins] == [train.lr] * begins
    steps = [a - b for a, b in zip(rates[begins:], rates[begins + 1 :], strict=False)]
    assert steps == pytest.approx([train.lr / (whole - begins)] * len(steps))


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (
            [Stage(1, 640, until=Plateau()), Stage(1, 64)],
            {"decay": 0.5},
            r"stage 1: Stage\.until may not have ended .* at step 5 of 11, .* until step 10\. ",
        ),
        (
            [Stage(1, 640, until=Budget(seconds=9)), Stage(1, 64)],
            {"decay": 0.5},
            r"stage 1: Stage\.until may not have ended",
        ),
        (
            [Stage(1, 640, until=Plateau())],
            {"schedule": "cosine"},
            r"stage 1: Stage\.until: train\.schedule \"cosine\" needs the length of the run",
        ),
    ],
)
def test_stages_that_do_not_fit_the_schedule_raise(
    substrate, data, monkeypatch, stages, settings, message: str
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained before checking"))
    with pytest.raises(ConfigError, match=message) as error:
        grow(make_model(substrate), data, GrowthSchedule(stages), train=make_train(**settings))
    assert "\n" not in str(error.value)


def test_a_budget_in_flops_is_compatible_with_a_cosine(substrate, data) -> None:
    stages = [Stage(1, 640, until=Budget(flops=1e6)), Stage(1, 64)]
    result = grow(
        make_model(substrate),
        data,
        GrowthSchedule(stages),
        train=make_train(schedule="cosine"),
        quiet=True,
    )
    assert result.stages[0].decision is not None
    assert result.stages[0].decision.reason == "flops"


def test_resuming_with_another_schedule_raises_one_line(substrate, data, tmp_path: Path) -> None:
    grow(make_model(substrate), data, WHOLE, train=make_train(), out=tmp_path, quiet=True)
    for change, message in (
        ({"schedule": "cosine"}, r"another train\.schedule \('wsd', now 'cosine'\); choose"),
        ({"decay": 0.1}, r"another train\.decay \(0\.4, now 0\.1\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            grow(
                make_model(substrate),
                data,
                WHOLE,
                train=make_train(**change),
                out=tmp_path,
                quiet=True,
            )
    schedule = replace(WHOLE, moments=Moments(trained_on="fresh"))
    with pytest.raises(ConfigError, match=r"another moments \(None, now \{'trained_on': 'fresh'"):
        grow(make_model(substrate), data, schedule, train=make_train(), out=tmp_path, quiet=True)


class Clock:
    """A clock that advances by a quarter of a second at each call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


@pytest.mark.parametrize("last", [True, False])
def test_a_budget_in_seconds_is_not_exceeded(
    substrate, data, monkeypatch, tmp_path: Path, last: bool
) -> None:
    """In the middle no time is reserved for a decay; at the end the decay fits the time left."""
    rule = functools.partial(SecondsRule, clock=Clock())
    monkeypatch.setattr("fastgrow.growth.stop_criteria.SecondsRule", rule)
    bounded = Stage(1, 64 * 60, "copy", train="all", until=Budget(seconds=10))
    stages = [Stage(1, 64 * 40), bounded, *([] if last else [Stage(1, 64 * 300)])]
    train = make_train(log_every=1, eval_every=10**6, warmup=0.0, decay=0.4)
    result = grow(
        make_model(substrate), data, GrowthSchedule(stages), train=train, out=tmp_path, quiet=True
    )
    decision = result.stages[1].decision
    assert decision is not None
    assert decision.reason == "seconds"
    # A step reads the clock up to three times; a decay of the run would take 27 steps or more.
    assert 5 <= decision.last_step <= 40
    assert (decision.last_step > decision.step) == last
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ended = [row for row in rows if row.get("stage", "").startswith("2/")]
    assert "validation_loss" in ended[-2] or "validation_loss" in ended[-1]
    assert max(row["step"] for row in ended) == decision.last_step


def test_a_plateau_may_last_until_the_decay_begins() -> None:
    lengths = [StageLength(5, PlateauRule(Plateau())), StageLength(5)]
    for decay, fits in ((0.5, True), (0.6, False)):
        with contextlib.nullcontext() if fits else pytest.raises(ConfigError):
            check_fits(lengths, make_train(decay=decay))


def test_the_best_weights_of_a_finished_run_are_of_its_decay(
    substrate, data, tmp_path: Path, monkeypatch
) -> None:
    """Weights from before the decay are not kept: their stage was not planned to be the last."""
    out, bests = tmp_path / "run", []
    finish_at(20, out, monkeypatch)
    restore = Trainer._restore_best

    def noted(trainer: Trainer) -> None:
        bests.append((trainer.best_step, set(trainer._best_weights) == set(trainer.active)))
        restore(trainer)

    monkeypatch.setattr(Trainer, "_restore_best", noted)
    train = replace(FINISHED, eval_every=4)
    grow(make_model(substrate), data, LONG, train=train, out=out, quiet=True)
    assert bests[-1][0] > 20
    assert bests[-1][1]


def test_groups_are_the_new_blocks_the_old_ones_and_the_head(substrate, data, monkeypatch) -> None:
    seen: list[dict[str, float]] = []
    run = Trainer.run

    def noted(trainer: Trainer, *arguments: object) -> object:
        names = {id(p): name for name, p in trainer.active.items()}
        seen.append(
            {
                names[id(p)]: g["rate"].factor
                for g in trainer.optimizer.param_groups
                for p in g["params"]
            }
        )
        return run(trainer, *arguments)

    monkeypatch.setattr(Trainer, "run", noted)
    rates = Rates(new=Rate(2.0), old=Rate(3.0), head=Rate(5.0))
    stages = [
        Stage(1, 64, rates=rates),
        Stage(1, 64, at=(0,), train="all", rates=rates),
        Stage(0, 64, lora=LoRA(rank=1), rates=rates),
    ]
    grow(make_model(substrate), data, GrowthSchedule(stages), train=make_train(), quiet=True)

    def factors(stage: int, prefix: str) -> set[float]:
        return {factor for name, factor in seen[stage].items() if name.startswith(prefix)}

    assert factors(0, "blocks.0.") == {2.0}
    assert (factors(1, "blocks.0."), factors(1, "blocks.1.")) == ({2.0}, {3.0})
    assert factors(2, "blocks.") == {2.0}, "LoRA is new"
    assert factors(2, "lm_head.") == factors(1, "final_norm.") == {5.0}


# -- finishing early ------------------------------------------------------------------------------

LONG = GrowthSchedule([Stage(1, 64 * 40), Stage(1, 64 * 400, "copy", train="all"), Stage(1, 6400)])
FINISHED = make_train(log_every=1, checkpoint_every=1, decay=0.25, warmup=0.0, eval_every=10**6)


def finish_at(step: int, out: Path, monkeypatch) -> None:
    """Request the run to finish after `step` steps of stage 2."""
    train_step = Trainer._train_step

    def requesting(trainer: Trainer, **options: bool) -> None:
        train_step(trainer, **options)
        if trainer.labels["stage"] == "2/3" and trainer.step == step:
            assert request_finish(out), "a process runs it"

    monkeypatch.setattr(Trainer, "_train_step", requesting)


def test_a_running_run_decays_and_ends_on_request(
    substrate, data, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    finish_at(20, out, monkeypatch)
    result = grow(make_model(substrate), data, LONG, train=FINISHED, out=out, quiet=True)
    assert [stage.depth for stage in result.stages] == [1, 2]
    # A third of the sixty steps made is a quarter of all.
    assert result.stages[1].decision == StopDecision("finish", 20, 40)
    rates = rates_of(out)
    assert rates[:61] == [FINISHED.lr] * 61
    assert rates[61:] == pytest.approx([FINISHED.lr * (1 - n / 20) for n in range(1, 20)])
    with pytest.raises(ConfigError, match="the run is already finished; its model is in"):
        request_finish(out)
    # The same command again returns the finished run.
    again = grow(make_model(substrate), data, LONG, train=FINISHED, out=out, quiet=True)
    assert digest(again.model) == digest(result.model)
    assert not (out / "finish").exists()


@pytest.mark.parametrize("killed_at", [21, 30])
def test_a_run_that_is_killed_after_the_request_ends_the_same(
    substrate, data, tmp_path: Path, monkeypatch, killed_at: int
) -> None:
    out = tmp_path / "run"
    # The last checkpoint before the kill does not contain the request.
    train = replace(FINISHED, checkpoint_every=16)
    with monkeypatch.context() as patch:
        finish_at(20, tmp_path / "whole", patch)
        whole = grow(
            make_model(substrate), data, LONG, train=train, out=tmp_path / "whole", quiet=True
        )
    with monkeypatch.context() as patch:
        finish_at(20, out, patch)
        asking = Trainer._train_step

        def killing(trainer: Trainer, **options: bool) -> None:
            if trainer.labels["stage"] == "2/3" and trainer.step == killed_at:
                raise KeyboardInterrupt
            asking(trainer, **options)

        patch.setattr(Trainer, "_train_step", killing)
        with pytest.raises(KeyboardInterrupt):
            grow(make_model(substrate), data, LONG, train=train, out=out, quiet=True)
    resumed = grow(make_model(substrate), data, LONG, train=train, out=out, quiet=True)
    assert resumed.stages[1].decision == whole.stages[1].decision
    assert digest(resumed.model) == digest(whole.model)


def test_a_stopped_run_is_finished_from_where_it_stopped(
    substrate, data, tmp_path: Path, monkeypatch
) -> None:
    train_step = Trainer._train_step

    def stopping(trainer: Trainer, **options: bool) -> None:
        if trainer.labels["stage"] == "2/3" and trainer.step == 8:
            raise KeyboardInterrupt
        train_step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            grow(make_model(substrate), data, LONG, train=FINISHED, out=tmp_path, quiet=True)
    assert not request_finish(tmp_path), "no process runs it"
    other = replace(FINISHED, lr=0.5)
    with pytest.raises(ConfigError, match=r"another train\.lr"):
        grow(make_model(substrate), data, LONG, train=other, out=tmp_path, quiet=True, finish=True)
    assert not (tmp_path / "finish").exists(), "what is refused asks for nothing"
    result = grow(
        make_model(substrate), data, LONG, train=FINISHED, out=tmp_path, quiet=True, finish=True
    )
    decision = result.stages[-1].decision
    assert decision is not None
    # At the first step that the resumed run makes; 49 were made by then.
    assert (decision.reason, decision.step, decision.last_step) == ("finish", 9, 9 + 17)


def test_finishing_an_unsuitable_run_raises(substrate, data, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no run to finish"):
        request_finish(tmp_path)
    train = make_train(schedule="per-stage")
    grow(make_model(substrate), data, WHOLE, train=train, out=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"only a run with train\.schedule=wsd .* has per-stage"):
        request_finish(tmp_path)


def test_one_process_at_a_time(substrate, data, tmp_path: Path) -> None:
    """`flock` belongs to the open file, so a second one here acts like another process."""
    with (
        sole_user(tmp_path),
        pytest.raises(FolderInUse, match=r"another process \(PID \d+\) is using"),
    ):
        grow(make_model(substrate), data, WHOLE, train=make_train(), out=tmp_path, quiet=True)
    # A lock file without a lock has no effect.
    assert (tmp_path / "lock").exists()
    grow(make_model(substrate), data, WHOLE, train=make_train(), out=tmp_path, quiet=True)

"""A run's name follows from all that decides its numbers, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from small_study import MakeStudy, settings

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, Stage
from fastgrow.study.controls import CONTROLS
from fastgrow.study.cost import plan_flops
from fastgrow.study.plan import stated
from fastgrow.training import TrainConfig


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"lr": 2e-3}},
        {"train": {"batch_size": 2}},
        {"model": {"d_model": 32}},
        {"schedule": {"stages": [{"tokens": 512}]}},
        {"schedule": {"stages": [{"tokens": 256, "insertion": "identity"}, {"tokens": 256}]}},
        {"control": "monolith"},
        {"control": "never-grown"},
        {"control": "frozen-without-growth"},
        {"texts": {"latin": 1, "greek": 1}},
        {"texts": {"greek": 1}},
        {"part": (0, 2)},
        {"tokens": 2.0},
        {"substrate": {"codes": "id-16"}},
        {"substrate": {"codes": "random-16", "seed": 1}},
    ],
    ids=str,
)
def test_what_decides_a_run_changes_its_name(make_study: MakeStudy, change: dict[str, Any]) -> None:
    trainings = {"a": {"texts": {"latin": 1}}, "b": {"texts": {"latin": 1}, **change}}
    study = make_study(trainings=trainings)
    assert study.run("a", 1).key != study.run("b", 1).key


def test_the_seed_and_the_texts_measured_change_the_name(make_study: MakeStudy) -> None:
    study = make_study()
    assert study.run("a", 1).key != study.run("a", 2).key
    assert study.run("a", 1).key != make_study(evaluate=["latin"]).run("a", 1).key


def test_logging_and_other_trainings_do_not(make_study: MakeStudy) -> None:
    key = make_study().run("a", 1).key
    others = {"a": {"texts": {"latin": 1}}, "c": {"texts": {"greek": 2}}}
    assert make_study(trainings=others, seeds=[3, 1], name="other").run("a", 1).key == key
    train = {"batch_size": 4, "lr": 1e-2, "eval_every": 2, "log_every": 7, "checkpoint_every": 3}
    assert make_study(train=train).run("a", 1).key == key


def test_defaults_that_are_spelled_out_do_not_either(make_study: MakeStudy) -> None:
    spelled = {"stages": [{"blocks": 1, "tokens": 256, "insertion": "random"}, {"tokens": 256}]}
    assert make_study(schedule=spelled).run("a", 1).key == make_study().run("a", 1).key


def test_stated_leaves_defaults_out_at_every_depth() -> None:
    schedule = GrowthSchedule([Stage(tokens=5), Stage(2, 7, lr=0.1)])
    assert stated({"x": [schedule]}) == {
        "x": [{"stages": [{"tokens": 5}, {"blocks": 2, "tokens": 7, "lr": 0.1}]}]
    }
    assert stated(TrainConfig(betas=(0.9, 0.99))) == {"betas": [0.9, 0.99]}


def test_equal_flops_are_equal(make_study: MakeStudy) -> None:
    trainings = {
        "a": {"texts": {"latin": 1}},
        "b": {"texts": {"latin": 1}, "control": "monolith", "equal_flops_to": "a"},
    }
    tokens = {"stages": [{"tokens": 100_000}, {"tokens": 100_000}]}
    study = make_study(trainings=trainings, schedule=tokens)
    a, b = study.run("a", 1), study.run("b", 1)
    assert b.plan.schedule.tokens < a.plan.schedule.tokens
    cost = [plan_flops(run.model, run.plan, run.seq_len) for run in (a, b)]
    assert cost[0] == pytest.approx(cost[1], rel=1e-4)


def test_a_factor_scales_every_stage(make_study: MakeStudy) -> None:
    study = make_study(trainings={"a": {"texts": {"latin": 1}, "tokens": 1.5}})
    assert [stage.tokens for stage in study.run("a", 1).plan.schedule.stages] == [384, 384]


def test_codes_take_their_own_width(make_study: MakeStudy) -> None:
    study = make_study(trainings={"a": {"texts": {"latin": 1}, "substrate": {"codes": "id-16"}}})
    assert study.run("a", 1).model.n_embed == 16


SCHEDULE = GrowthSchedule([Stage(2, 100), Stage(1, 300, lr=0.5), Stage(1, 200)])


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_train_on_as_many_tokens(control: str) -> None:
    assert CONTROLS[control](SCHEDULE).schedule.tokens == 600


def test_controls_have_the_blocks_that_their_names_say() -> None:
    made = {name: make(SCHEDULE) for name, make in CONTROLS.items()}
    assert made["grown"].schedule == SCHEDULE
    assert [s.blocks for s in made["monolith"].schedule.stages] == [4]
    assert [s.blocks for s in made["never-grown"].schedule.stages] == [2]
    frozen = made["frozen-without-growth"]
    assert frozen.random_blocks == 3
    assert [s.blocks for s in frozen.schedule.stages] == [1]
    assert made["monolith"].random_blocks == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trainings": {"a": {"texts": {"latn": 1}}}}, r"trainings\.a\.texts: there is no 'latn'"),
        ({"trainings": {"a": {"texts": {"latin": 0}}}}, "shares above 0"),
        ({"trainings": {"a/b": {"texts": {"latin": 1}}}}, "'a/b' is no name"),
        ({"evaluate": ["french"]}, "evaluate: there is no 'french'"),
        ({"evaluate": []}, "at least one text"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"schedule": None}, "neither it nor the study has a schedule"),
        ({"nmae": "x"}, "did you mean 'name'"),
        ({"trainings": {"a": {"texts": {"latin": 1}, "control": "grwn"}}}, "expected one of grown"),
        ({"trainings": {"a": {"texts": {"latin": 1}, "part": [3, 3]}}}, "0 ≤ i < n"),
        ({"trainings": {"a": {"texts": {"latin": 1}, "equal_flops_to": "z"}}}, "no 'z'"),
        ({"ensembles": {"e": {"experts": ["z"], "rules": {"m": {"rule": {}}}}}}, "no 'z'"),
        ({"ensembles": {"e": {"experts": ["a"], "rules": {"m": {}}}}}, "either rule or choose"),
        ({"documents": {"characters": 0}}, "at least 1, got 0"),
    ],
    ids=str,
)
def test_a_study_that_makes_no_sense_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**entries)


def test_a_wrong_change_is_named_before_anything_runs(make_study: MakeStudy) -> None:
    study = make_study(trainings={"a": {"texts": {"latin": 1}, "model": {"d_modle": 8}}})
    with pytest.raises(ConfigError, match="did you mean 'd_model'"):
        study.run("a", 1)

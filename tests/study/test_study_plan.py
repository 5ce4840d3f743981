"""A run's name depends on everything that affects its results, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_study import MakeStudy, settings

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, Stage, StageShape, stage_shape
from fastgrow.growth.active import active_parameters
from fastgrow.nn import DecoderConfig
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
        {"control": "windows"},
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


def test_what_becomes_of_the_optimizers_state_is_part_of_a_key(make_study: MakeStudy) -> None:
    stages = [{"tokens": 256}, {"tokens": 256, "train": "all"}]
    keys = {
        make_study(schedule={"stages": stages, **more}).run("a", 1).key
        for more in ({}, {"moments": {}}, {"moments": {"trained_on": "fresh"}})
    }
    assert len(keys) == 3


def test_stated_leaves_defaults_out_at_every_depth() -> None:
    schedule = GrowthSchedule([Stage(tokens=5), Stage(2, 7, lr=0.1)])
    assert stated({"x": [schedule]}) == {
        "x": [{"stages": [{"tokens": 5}, {"blocks": 2, "tokens": 7, "lr": 0.1}]}]
    }
    # The settings of records from before there was a learning-rate schedule over the run.
    before = TrainConfig(schedule="per-stage", min_lr_ratio=0.1, betas=(0.9, 0.99))
    assert stated(before) == {"betas": [0.9, 0.99]}
    assert stated(TrainConfig()) == {"schedule": "wsd", "min_lr_ratio": 0.0}


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
MODEL = DecoderConfig(vocab_size=40, d_model=16, n_head=2, max_seq_len=16)


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_train_on_as_many_tokens_to_the_full_depth(control: str) -> None:
    plan = CONTROLS[control](SCHEDULE, MODEL)
    assert plan.schedule.tokens == 600
    depth = 2 if control == "never-grown" else 4
    assert plan.schedule.n_blocks + plan.random_blocks == depth


def made(control: str) -> tuple[GrowthSchedule, list[StageShape]]:
    plan = CONTROLS[control](SCHEDULE, MODEL)
    stages = range(len(plan.schedule.stages))
    shapes = [stage_shape(plan.schedule, i, MODEL, plan.random_blocks) for i in stages]
    return plan.schedule, shapes


def test_what_trains_in_each_control() -> None:
    trained = {name: [shape.trained for shape in made(name)[1]] for name in CONTROLS}
    everything = (0, 1, 2, 3)
    assert trained == {
        "grown": [(0, 1), (2,), (3,)],
        "never-grown": [(0, 1)],
        "monolith": [everything],
        "frozen-without-growth": [(3,)],
        "copies": [(0, 1), everything],
        "lora-phases": [(0, 1), (2,), (), (3,), ()],
        "joint-polish": [(0, 1), (2,), (3,), everything],
        "windows": [(0, 1), (0, 1, 2), (2, 3)],
    }


def test_a_lora_phase_adapts_all_blocks_within_its_stages_budget() -> None:
    schedule, shapes = made("lora-phases")
    assert [shape.adapted for shape in shapes] == [(), (), (0, 1, 2), (), (0, 1, 2, 3)]
    for grown, phase in ((1, 2), (3, 4)):
        stage, shape = schedule.stages[phase], shapes[phase]
        budget = active_parameters(schedule.stages[grown], shapes[grown], MODEL)
        assert shape.rank is not None
        assert active_parameters(stage, shape, MODEL) <= budget
        assert active_parameters(stage, replace(shape, rank=shape.rank + 1), MODEL) > budget


def test_copies_are_copies_and_a_stages_rate_is_kept() -> None:
    schedule, _ = made("copies")
    assert schedule.stages[1].insertion == "copy"
    assert schedule.stages[1].lr == 0.5


def test_cost_grows_with_what_trains() -> None:
    cost = {name: plan_flops(MODEL, CONTROLS[name](SCHEDULE, MODEL), 16) for name in CONTROLS}
    assert cost["frozen-without-growth"] < cost["monolith"]
    assert cost["grown"] < cost["windows"] < cost["monolith"]
    assert cost["never-grown"] < cost["monolith"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trainings": {"a": {"texts": {"latn": 1}}}}, r"trainings\.a\.texts: there is no 'latn'"),
        (
            {"trainings": {"a": {"texts": {"latin": 0}}}},
            r"a\.texts\.latin: .* number above 0, got 0",
        ),
        ({"trainings": {"a/b": {"texts": {"latin": 1}}}}, "'a/b' is not a valid name"),
        ({"evaluate": ["french"]}, "evaluate: there is no 'french'"),
        ({"evaluate": []}, "evaluate: expected a list of length at least 1"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"schedule": None}, r"trainings\.a\.schedule: is missing"),
        ({"nmae": "x"}, "did you mean 'name'"),
        (
            {"trainings": {"a": {"texts": {"latin": 1}, "control": "grwn"}}},
            "expected one of copies, ",
        ),
        ({"trainings": {"a": {"texts": {"latin": 1}, "part": [3, 3]}}}, "0 ≤ i < n"),
        ({"trainings": {"a": {"texts": {"latin": 1}, "equal_flops_to": "z"}}}, "no 'z'"),
        ({"ensembles": {"e": {"experts": ["z"], "rules": {"m": {"rule": {}}}}}}, "no 'z'"),
        ({"ensembles": {"e": {"experts": ["a"], "rules": {"m": {}}}}}, "exactly one of rule and"),
        ({"documents": {"characters": 0}}, r"documents\.characters: .* at least 1, got 0"),
        ({"ensembles": {"e": {"experts": [], "rules": {"m": {"rule": {}}}}}}, r"e\.experts: .* 1"),
        ({"ensembles": {"e": {"experts": ["a"], "rules": {}}}}, r"e\.rules: .* length at least 1"),
    ],
    ids=str,
)
def test_an_invalid_study_is_rejected(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**entries)


def test_a_wrong_change_is_named_before_anything_runs(make_study: MakeStudy) -> None:
    study = make_study(trainings={"a": {"texts": {"latin": 1}, "model": {"d_modle": 8}}})
    with pytest.raises(ConfigError, match="did you mean 'd_model'"):
        study.run("a", 1)

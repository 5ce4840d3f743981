"""Stages of every kind: exactly the parameters in the stage's shape change."""

from __future__ import annotations

import pytest
import torch
from growing import digest, make_model, make_train
from test_run import Spy

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, LoRA, Stage, grow
from fastgrow.growth.active import active_parameters, stage_shape
from fastgrow.training import Trainer

FIRST = Stage(2, 256)
KINDS = {
    "lora-and-new-blocks": Stage(1, 256, lora=LoRA(rank=2)),
    "lora-alone": Stage(0, 256, lora=LoRA(budget=6_000)),
    "lora-on-some": Stage(0, 256, lora=LoRA(rank=2, targets=("attention.out",), blocks=(1,))),
    "everything": Stage(0, 256, train="all"),
    "window": Stage(1, 256, window=2),
    "between": Stage(2, 256, "identity", at=(0, 1)),
    "stack-copied": Stage(2, 256, "copy"),
    "copies-between": Stage(1, 256, "copy", at=(1,), copy_of=(0,)),
    "recursion": Stage(2, 256, "copy", train="none", lora=LoRA(rank=2, blocks="new")),
    "head-frozen": Stage(1, 256, head="frozen"),
    "head-tied": Stage(1, 256, head="tied"),
    "head-reset": Stage(1, 256, head="reset", final_norm=False),
}


def expected_active(stage: Stage, shape) -> set[str]:
    """The names in the state dict that are active in a stage, from its shape."""
    places = {f"blocks.{i}" for i in shape.trained}
    places |= {"final_norm"} if shape.final_norm else set()
    places |= {"lm_head"} if shape.head else set()
    if stage.lora is not None:
        targets = [name for name in stage.lora.targets if name != "mlp.gate"]
        places |= {f"blocks.{i}.{name}.lora_" for i in shape.adapted for name in targets}
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_active_set_changes(substrate, data, monkeypatch, kind: str) -> None:
    """With strong weight decay, which changes all parameters of the optimizer, gradient or not."""
    spy, schedule = Spy(monkeypatch), GrowthSchedule([FIRST, KINDS[kind]])
    train = make_train(pick="last", weight_decay=0.5)
    model = grow(make_model(substrate), data, schedule, train=train, quiet=True).model
    shape = stage_shape(schedule, 1, model.config)
    seen = spy.stages[1]
    places = tuple(expected_active(KINDS[kind], shape))
    assert seen["active"] == {n for n in seen["before"] if n.startswith(places)}
    assert all(any(n.startswith(place) for n in seen["active"]) for place in places)
    assert seen["optimized"] == seen["with_state"] == seen["active_ids"]
    for name, before in seen["before"].items():
        assert torch.equal(before, seen["after"][name]) == (name not in seen["active"]), name
    numbers = sum(seen["after"][name].numel() for name in seen["active"])
    assert numbers == active_parameters(KINDS[kind], shape, model.config)


@pytest.mark.parametrize("kind", ["between", "lora-alone"])
def test_insertions_that_change_nothing_start_where_the_last_stage_ended(
    substrate, data, kind: str
) -> None:
    schedule = GrowthSchedule([FIRST, KINDS[kind]])
    train = make_train(pick="last")
    first, second = grow(make_model(substrate), data, schedule, train=train, quiet=True).stages
    assert second.bits_at_start == pytest.approx(first.bits["validation"], rel=1e-6)


def model_before_training(substrate, data, monkeypatch, stage: Stage):
    """The model right before the training of the second stage."""
    found = []

    def keep(trainer: Trainer, *args: object, **kwargs: object):
        found.append({n: t.clone() for n, t in trainer.model.state_dict().items()})
        return original(trainer, *args, **kwargs)

    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", keep)
    schedule = GrowthSchedule([FIRST, stage])
    model = grow(make_model(substrate), data, schedule, train=make_train(), quiet=True).model
    return model, found[1]


def test_a_tied_head_is_the_lifted_table(substrate, data, monkeypatch) -> None:
    model, at_start = model_before_training(substrate, data, monkeypatch, KINDS["head-tied"])
    ids = torch.arange(model.vocab_size)
    table = model.embedding.table.repeat_interleave(2, dim=1)
    for weight, bias in (
        (at_start["lm_head.weight"], at_start["lm_head.bias"]),
        (model.lm_head.weight, model.lm_head.bias),
    ):
        assert torch.equal(weight, table)
        assert not bias.any()
    hidden = model.hidden(ids[None, :10])
    torch.testing.assert_close(model(ids[None, :10]), hidden @ table.T)


def test_a_head_is_reset_from_the_runs_seed(substrate, data, monkeypatch) -> None:
    stage = KINDS["head-reset"]
    _, one = model_before_training(substrate, data, monkeypatch, stage)
    _, kept = model_before_training(substrate, data, monkeypatch, Stage(1, 256))
    _, again = model_before_training(substrate, data, monkeypatch, stage)
    assert torch.equal(one["lm_head.weight"], again["lm_head.weight"])
    assert not torch.equal(one["lm_head.weight"], kept["lm_head.weight"])
    std = make_model(substrate).config.initial_std
    assert one["lm_head.weight"].std().item() == pytest.approx(std, rel=0.1)
    assert not one["lm_head.bias"].any()


def test_copies_are_of_the_given_blocks(substrate, data, monkeypatch) -> None:
    _, state = model_before_training(substrate, data, monkeypatch, KINDS["copies-between"])
    for name in ("attention.qkv.weight", "mlp.down.bias", "mlp_norm.weight"):
        assert torch.equal(state[f"blocks.1.{name}"], state[f"blocks.0.{name}"])
        assert not torch.equal(state[f"blocks.2.{name}"], state[f"blocks.0.{name}"])


def test_a_table_is_frozen_after_the_first_stage_and_thaws_with_everything(
    substrate, data, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    schedule = GrowthSchedule([FIRST, Stage(1, 256), Stage(0, 256, train="all")])
    model = make_model(substrate, embedding="trainable")
    grow(model, data, schedule, train=make_train(pick="last"), quiet=True)
    assert ["embedding.table" in seen["active"] for seen in spy.stages] == [True, False, True]


def test_an_impossible_stage_raises_before_the_first_one(substrate, data, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained before checking"))
    schedule = GrowthSchedule([FIRST, Stage(1, 256, at=(3,))])
    with pytest.raises(ConfigError, match=r"stage 2: Stage\.at: there are 2 old blocks"):
        grow(make_model(substrate), data, schedule, train=make_train(), quiet=True)


def test_new_blocks_do_not_depend_on_the_callers_random_numbers(substrate, data) -> None:
    def run(seed: int) -> str:
        model = make_model(substrate)
        torch.manual_seed(seed)
        schedule = GrowthSchedule([FIRST, KINDS["lora-and-new-blocks"]])
        return digest(grow(model, data, schedule, train=make_train(), quiet=True).model)

    assert run(1) == run(2)

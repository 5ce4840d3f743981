"""Frozen copies share the weights of their originals in their stage, and have their own after."""

from __future__ import annotations

from pathlib import Path

import pytest
from growing import digest, make_model, make_train

from fastgrow.errors import Interrupted
from fastgrow.growth import GrowthResult, GrowthSchedule, LoRA, Stage, boundary, grow, stage_shape
from fastgrow.growth.sharing import frozen_copies
from fastgrow.nn import Decoder
from fastgrow.training import Trainer

RECURSION = Stage(3, 256, "copy", copy_of=(0, 1, 0), train="none", lora=LoRA(2, blocks="new"))
SCHEDULE = GrowthSchedule([Stage(2, 256), RECURSION, Stage(0, 256, train="all")])


def storages(model: Decoder) -> list[int]:
    return [block.mlp_norm.weight.data_ptr() for block in model.blocks]


@pytest.fixture
def seen(monkeypatch) -> list[list[int]]:
    """The addresses of the blocks' weights in every step."""
    found, step = [], Trainer._train_step

    def watching(trainer: Trainer, **options: object) -> None:
        found.append(storages(trainer.model))
        step(trainer, **options)

    monkeypatch.setattr(Trainer, "_train_step", watching)
    return found


def run(substrate, data, out: Path | None = None) -> GrowthResult:
    train = make_train(checkpoint_every=2)
    return grow(make_model(substrate), data, SCHEDULE, train=train, out=out, quiet=True)


def test_frozen_copies_have_the_storage_of_their_originals(
    substrate, data, seen, monkeypatch
) -> None:
    result = run(substrate, data)
    first, second, third = seen[0], seen[4], seen[8]
    assert len(set(first)) == 2
    assert second == [second[0], second[1], second[0], second[1], second[0]]
    assert len(set(second)) == 2
    assert len(set(third)) == len(set(storages(result.model))) == 5
    monkeypatch.setattr(boundary, "share_copies", lambda *arguments: None)
    seen.clear()
    assert digest(run(substrate, data).model) == digest(result.model)
    assert len(set(seen[4])) == 5


def test_after_an_interruption_weights_are_separate(substrate, data, tmp_path, seen) -> None:
    whole = digest(run(substrate, data).model)
    model, step = make_model(substrate), Trainer._train_step

    def stopping(trainer: Trainer, **options: object) -> None:
        step(trainer, **options)
        if trainer.labels["stage"] == "2/3" and trainer.step == 3:
            raise Interrupted("here")

    train = make_train(checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(Interrupted):
            grow(model, data, SCHEDULE, train=train, out=tmp_path, quiet=True)
    assert len(set(storages(model))) == 5
    seen.clear()
    assert digest(run(substrate, data, tmp_path).model) == whole
    # After resuming in the middle of the stage, the copies share weights again.
    assert len(set(seen[0])) == 2


def test_active_weights_are_not_shared(substrate) -> None:
    config = make_model(substrate).config

    def copies(*stages: Stage) -> dict[int, int]:
        schedule = GrowthSchedule(list(stages))
        return frozen_copies(stages[-1], stage_shape(schedule, len(stages) - 1, config))

    assert copies(Stage(2), RECURSION) == {2: 0, 3: 1, 4: 0}
    assert copies(Stage(2), Stage(1, insertion="copy")) == {}
    assert copies(Stage(2), Stage(1)) == {}
    below = Stage(1, insertion="copy", at=(1,), train="none", lora=LoRA(2, blocks="new"))
    assert copies(Stage(2), below) == {1: 0}

"""The optimizer state at a boundary: kept, fresh, copied, or saved until a block thaws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import digest, make_model, make_train

from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.growth import GrowthSchedule, LoRA, Moments, Stage, grow
from fastgrow.growth import stage_run as stage_run_module
from fastgrow.training import Trainer

TRAIN = make_train(pick="last")
# The first block is active, frozen with LoRA for a stage, and active again, above a new block.
THAWING = GrowthSchedule(
    [
        Stage(1, 256),
        Stage(1, 256, "copy", lora=LoRA(rank=2)),
        Stage(1, 256, "copy", at=(1,), train="all"),
    ]
)

States = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def states(monkeypatch):
    """The optimizer states at the start and end of each stage, by stage and parameter."""
    begun: list[States] = []
    ended: list[States] = []

    class Watched(Trainer):
        def run(self, *arguments: Any) -> Any:
            begun.append(copied(self.optimizer.state_dict()))
            result = super().run(*arguments)
            ended.append(copied(self.optimizer.state_dict()))
            return result

    monkeypatch.setattr(stage_run_module, "Trainer", Watched)
    return begun, ended


def copied(states: States) -> States:
    return {name: {k: v.clone() for k, v in state.items()} for name, state in states.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def run(substrate, data, stages: GrowthSchedule, out: Path | None = None, **settings: Any):
    train = replace(TRAIN, **settings)
    return grow(make_model(substrate), data, stages, train=train, out=out, quiet=True)


def of_block(states: States, index: int) -> States:
    prefix = f"blocks.{index}."
    return {n.removeprefix(prefix): state for n, state in states.items() if n.startswith(prefix)}


def test_active_parameters_keep_their_state_and_new_ones_have_none(substrate, data, states) -> None:
    begun, ended = states
    # Block 0 of the first stage is block 1 of the second.
    run(substrate, data, GrowthSchedule([Stage(1, 256), Stage(1, 256, at=(0,), train="all")]))
    assert begun[0] == {}
    assert of_block(begun[1], 0) == {}
    old, now = of_block(ended[0], 0), of_block(begun[1], 1)
    assert old.keys() == now.keys()
    assert all(same(now[name], old[name]) for name in old)
    assert same(begun[1]["lm_head.weight"], ended[0]["lm_head.weight"])
    assert float(now["mlp.up.weight"]["step"]) == 4.0


def test_with_fresh_nothing_is_kept(substrate, data, states) -> None:
    schedule = GrowthSchedule([Stage(1, 256), Stage(1, 256, train="all")])
    run(substrate, data, replace(schedule, moments=Moments(trained_on="fresh")))
    run(substrate, data, schedule, schedule="per-stage")
    assert states[0] == [{}, {}, {}, {}]


def test_per_stage_schedules_may_keep_the_state(substrate, data, states) -> None:
    schedule = GrowthSchedule([Stage(1, 256), Stage(1, 256, train="all")], moments=Moments())
    run(substrate, data, schedule, schedule="per-stage")
    assert of_block(states[0][1], 0) != {}


@pytest.mark.parametrize("train", ["all", "new"])
def test_copies_start_with_a_copied_state_if_requested(substrate, data, states, train) -> None:
    begun, ended = states
    stages = [Stage(2, 256), Stage(2, 256, "copy", at=(1, 2), copy_of=(1, 0), train=train)]
    run(substrate, data, GrowthSchedule(stages, moments=Moments(copied="copy")))
    # The stack is old 0, copy of 1, old 1, copy of 0.
    for copy, source in ((1, 1), (3, 0)):
        old, now = of_block(ended[0], source), of_block(begun[1], copy)
        assert old.keys() == now.keys()
        assert all(same(now[name], old[name]) for name in old)
    assert bool(of_block(begun[1], 0)) == (train == "all")


def test_a_copied_state_is_separate_from_its_original(substrate, data, states) -> None:
    """The state of a copy has separate memory."""
    stages = [Stage(1, 256), Stage(1, 256, "copy", train="all")]
    run(substrate, data, GrowthSchedule(stages, moments=Moments(copied="copy")))
    end = states[1][1]
    one, other = of_block(end, 0), of_block(end, 1)
    assert not same(one["mlp.up.weight"], other["mlp.up.weight"])
    # Four steps in the first stage and four in the second, and not eight in the second.
    assert {float(state["step"]) for state in (*one.values(), *other.values())} == {8.0}


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_block_that_thaws_has_its_state_restored(
    substrate, data, states, tmp_path: Path, on_disk: bool
) -> None:
    begun, ended = states
    run(substrate, data, THAWING, tmp_path if on_disk else None)
    assert of_block(begun[1], 0) == {}, "the block rests, and LoRA is new"
    old, thawed = of_block(ended[0], 0), of_block(begun[2], 0)
    assert old.keys() == thawed.keys()
    assert all(same(thawed[name], old[name]) for name in old)
    # Index 1 before the new block came below it; the new one's is fresh.
    trained_on = of_block(ended[1], 1)
    assert all(same(of_block(begun[2], 2)[name], trained_on[name]) for name in trained_on)
    assert of_block(begun[2], 1) == {}
    assert not (tmp_path / "moments").exists(), "a finished run needs it no longer"


def test_a_frozen_block_is_tracked_through_every_insertion(
    substrate, data, states, tmp_path: Path
) -> None:
    """It is frozen for three stages, is moved by blocks below it in two of them, and thaws."""
    stages = [
        Stage(1, 256),
        Stage(1, 256, at=(0,)),
        Stage(2, 256, at=(0, 2)),
        Stage(1, 256),
        Stage(0, 256, train="all"),
    ]
    run(substrate, data, GrowthSchedule(stages), tmp_path)
    begun, ended = states
    # The stacks are [a], [b a], [c b a d], [c b a d e].
    for block, stage, index, then in (
        ("a", 0, 0, 2),
        ("b", 1, 0, 1),
        ("c", 2, 0, 0),
        ("d", 2, 3, 3),
    ):
        old, thawed = of_block(ended[stage], index), of_block(begun[4], then)
        assert old, block
        assert old.keys() == thawed.keys(), block
        assert all(same(thawed[name], old[name]) for name in old), block


def test_a_trainable_table_keeps_its_state(substrate, data, states) -> None:
    stages = [Stage(1, 256), Stage(1, 256, train="all")]
    model = make_model(substrate, embedding="trainable")
    grow(model, data, GrowthSchedule(stages), train=TRAIN, quiet=True)
    begun, ended = states
    (name,) = (name for name in ended[0] if name.startswith("embedding."))
    assert same(begun[1][name], ended[0][name])


def test_a_block_that_thaws_has_a_fresh_state_if_requested(substrate, data, states) -> None:
    run(substrate, data, replace(THAWING, moments=Moments(thawed="fresh")))
    assert of_block(states[0][2], 0) == {}


def test_only_states_of_blocks_that_thaw_later_are_saved(
    substrate, data, tmp_path: Path, monkeypatch
) -> None:
    """A run in which blocks never thaw writes no file."""
    written = []
    monkeypatch.setattr("fastgrow.growth.optimizer_state.save_file", lambda *a: written.append(a))
    run(substrate, data, GrowthSchedule([Stage(1, 256), Stage(1, 256)]), tmp_path)
    assert written == []


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_file_raises(substrate, data, tmp_path, monkeypatch, damage: str) -> None:
    trainings = []

    class Stopping(Trainer):
        def run(self, *arguments: Any) -> Any:
            trainings.append(self)
            if len(trainings) == 2:
                raise KeyboardInterrupt
            return super().run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage_run_module, "Trainer", Stopping)
        with pytest.raises(KeyboardInterrupt):
            run(substrate, data, THAWING, tmp_path)
    (file,) = (tmp_path / "moments").iterdir()
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    found = "missing" if damage == "missing" else "damaged"
    with pytest.raises(
        CheckpointError, match=rf"stage-1\.safetensors: .* frozen blocks is {found}; restore"
    ):
        run(substrate, data, THAWING, tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_every_boundary_it_ends_the_same(
    substrate, data, tmp_path, monkeypatch, optimizer: str
) -> None:
    """Between the end of a stage and its checkpoint, and right after that."""
    schedule = replace(THAWING, moments=Moments(copied="copy"))
    whole = digest(run(substrate, data, schedule, optimizer=optimizer).model)
    from fastgrow.growth.folder import RunFolder

    save, done = RunFolder.save, []
    for moment in ("before", "after"):
        out = tmp_path / moment

        def killed(folder: RunFolder, step: int, state: Any, moment: str = moment) -> Any:
            if (moment, step) in done:
                return save(folder, step, state)
            done.append((moment, step))
            if moment == "after":
                save(folder, step, state)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save", killed)
            for _ in range(20):
                try:
                    end = run(substrate, data, schedule, out, optimizer=optimizer)
                    break
                except KeyboardInterrupt:
                    continue
        assert digest(end.model) == whole
    assert len(done) == 2 * 3


@pytest.mark.parametrize("between", [[], [Stage(1, 256, head="tied")]])
def test_a_head_that_is_reset_has_no_state(substrate, data, states, between) -> None:
    head = "keep" if between else "reset"
    last = Stage(1, 256, head=head)
    run(substrate, data, GrowthSchedule([Stage(1, 256), *between, last]))
    assert "lm_head.weight" in states[1][0]
    assert "lm_head.weight" not in states[0][-1]
    assert "final_norm.weight" in states[0][-1]


def test_a_head_that_was_frozen_continues_with_its_state(substrate, data, states) -> None:
    stages = [Stage(1, 256), Stage(1, 256, head="frozen"), Stage(1, 256)]
    run(substrate, data, GrowthSchedule(stages))
    begun, ended = states
    assert same(begun[2]["lm_head.weight"], ended[0]["lm_head.weight"])


@pytest.mark.parametrize("name", ["trained_on", "copied", "thawed"])
def test_an_unknown_choice_raises(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Moments\.{name}: expected one of .*, .*, got 'lost'"):
        Moments(**{name: "lost"})

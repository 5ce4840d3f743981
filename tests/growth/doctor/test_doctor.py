"""The doctor finds no fault in a correct run, and reports every fault that is put into one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from growing import make_data, make_model, make_substrate, make_train

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, LoRA, Stage, Trunk, freeze, run
from fastgrow.growth.doctor import CHECKS, Diagnosis, diagnose
from fastgrow.growth.doctor import stage as examination
from fastgrow.growth.trunk.activations import CachedActivations
from fastgrow.nn import Block, Decoder, LoRALinear
from fastgrow.nn import decoder as decoder_module
from fastgrow.nn.lora import Merged
from fastgrow.substrate import Substrate
from fastgrow.training import Batches, loop
from fastgrow.training.optimizer import Optimizer, Rate

PLAIN = [Stage(1), Stage(1)]
EVERY_KIND = [
    Stage(2),
    Stage(1, insertion="identity"),
    Stage(1, lora=LoRA(rank=2)),
    Stage(0, lora=LoRA(rank=2, blocks=(1,)), head="frozen"),
    Stage(1, insertion="copy", at=(1,), window=2, final_norm=False),
    Stage(2, insertion="copy", train="none", lora=LoRA(rank=2, blocks="new"), head="tied"),
    Stage(0, train="all", head="reset"),
]


def examine(
    substrate: Substrate,
    tmp_path: Path,
    stages: list[Stage] = PLAIN,
    spoil: Callable[[Decoder], None] = lambda model: None,
    trunk: Trunk | None = None,
    **options: str,
) -> Diagnosis:
    model = make_model(substrate, **options)
    spoil(model)
    data = make_data(substrate, tmp_path / "tokens")
    return diagnose(model, data, GrowthSchedule(stages), make_train(), steps=2, trunk=trunk)


def failures(diagnosis: Diagnosis) -> dict[str, str]:
    """Detail of each failed check, by its name and stage."""
    return {f"{f.check} {f.stage}": f.detail for f in diagnosis.failures}


@pytest.mark.parametrize("embedding", ["frozen", "trainable"])
def test_a_sound_run_of_every_kind_of_stage(substrate, tmp_path: Path, embedding: str) -> None:
    stages = EVERY_KIND if embedding == "frozen" else PLAIN
    diagnosis = examine(substrate, tmp_path, stages, embedding=embedding)
    assert failures(diagnosis) == {}
    assert diagnosis.healthy
    held = {(f.check, f.stage) for f in diagnosis.findings if f.ok}
    always = set(CHECKS) - {"substrate", "merge", "trunk", "run"}
    assert {(check, s) for check in always for s in range(1, len(stages) + 1)} <= held
    assert ("run", len(stages)) in held
    if embedding == "frozen":
        assert {("merge", 3), ("merge", 4), ("merge", 6), ("substrate", 1)} <= held


@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_cached_activations_are_compared_with_recomputing(
    substrate, tmp_path: Path, cache: str
) -> None:
    stages = [Stage(1), Stage(1), Stage(1, lora=LoRA(rank=2, blocks=(1,))), Stage(1, at=(1,))]
    diagnosis = examine(substrate, tmp_path, stages, trunk=Trunk(cache=cache))
    assert failures(diagnosis) == {}
    found = {f.stage: (f.ok, f.detail) for f in diagnosis.findings if f.check == "trunk"}
    assert found.pop(1) == (None, "no frozen trunk")
    assert sorted(found) == [2, 3, 4]
    for ok, detail in found.values():
        assert ok
        assert detail.startswith("cached against recomputed: ")


def test_without_a_trunk_there_is_nothing_to_compare(substrate, tmp_path: Path) -> None:
    for trunk, why in (
        (None, "the run has no trunk settings"),
        (Trunk(cache="ram", limit=1), "nothing is cached with these settings"),
    ):
        diagnosis = examine(substrate, tmp_path, trunk=trunk)
        assert diagnosis.healthy
        second = next(f for f in diagnosis.findings if (f.check, f.stage) == ("trunk", 2))
        assert (second.ok, second.detail) == (None, why)


def test_cached_activations_that_differ(substrate, tmp_path: Path, monkeypatch) -> None:
    read = CachedActivations.read
    monkeypatch.setattr(CachedActivations, "read", lambda self, windows: 1.01 * read(self, windows))
    found = failures(examine(substrate, tmp_path, trunk=Trunk(cache="ram")))
    assert set(found) == {"trunk 2"}
    assert "maximum error" in found["trunk 2"]


def test_nothing_is_left_or_disturbed(substrate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = make_data(substrate, tmp_path / "tokens")
    before, state = sorted(tmp_path.rglob("*")), torch.get_rng_state()
    trunk = Trunk(cache="disk", folder=str(tmp_path / "kept"))
    schedule = GrowthSchedule(PLAIN)
    diagnose(make_model(substrate), data, schedule, make_train(), steps=2, trunk=trunk)
    assert sorted(tmp_path.rglob("*")) == before
    torch.manual_seed(0)
    make_model(substrate)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_optimizer_that_holds_one_more(substrate, tmp_path: Path, monkeypatch) -> None:
    class OneMore(Optimizer):
        def __init__(self, active, config, rates):
            super().__init__(active, config, rates)
            foreign = torch.nn.Parameter(torch.zeros_like(next(iter(active.values()))))
            self._parts[0].add_param_group({"params": [foreign], "rate": Rate()})

    monkeypatch.setattr(loop, "Optimizer", OneMore)
    found = failures(examine(substrate, tmp_path))
    assert set(found) == {"optimizer 1", "optimizer 2"}
    assert "a tensor that is not a parameter of the model" in found["optimizer 1"]


def test_an_optimizer_without_one(substrate, tmp_path: Path, monkeypatch) -> None:
    class OneLess(Optimizer):
        def __init__(self, active, config, rates):
            rest = {n: p for n, p in active.items() if n != "final_norm.bias"}
            super().__init__(rest, config, rates)

    monkeypatch.setattr(loop, "Optimizer", OneLess)
    found = failures(examine(substrate, tmp_path, PLAIN[:1]))
    assert "does not hold final_norm.bias" in found["optimizer 1"]
    assert "final_norm.bias" in found["moves 1"]


def test_a_frozen_tensor_that_is_touched(substrate, tmp_path: Path, monkeypatch) -> None:
    def touching(block: Block, *arguments: object, **options: object) -> torch.Tensor:
        y = original(block, *arguments, **options)
        weight = block.mlp.up.weight
        # The run computes frozen blocks without autograd.
        if block.training and not weight.requires_grad:
            weight.data.view(-1)[0] += 1e-3
        return y

    original = Block.forward
    monkeypatch.setattr(Block, "forward", touching)
    found = failures(examine(substrate, tmp_path))
    assert found["frozen 2"] == "changed: blocks.0.mlp.up.weight"
    assert "frozen 1" not in found
    assert "a frozen tensor changed" in found["run 2"]


def test_a_block_that_is_detached(substrate, tmp_path: Path, monkeypatch) -> None:
    def without_attention(block: Block, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return block.mlp(block.mlp_norm(x), residual=x)

    monkeypatch.setattr(Block, "forward", without_attention)
    diagnosis = examine(substrate, tmp_path)
    found = failures(diagnosis)
    assert (
        "active parameters without a gradient: blocks.0.attention_norm.weight"
        in found["gradients 1"]
    )
    assert (
        "active parameters without a gradient: blocks.1.attention_norm.weight"
        in found["gradients 2"]
    )
    assert "got no gradient" in found["training 1"]
    unreached = {f.check for f in diagnosis.findings if f.detail == "not reached"}
    assert {"frozen", "moves", "resume"} <= unreached


def test_a_data_cursor_that_is_not_restored(substrate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Batches, "load_state_dict", lambda batches, state: None)
    found = failures(examine(substrate, tmp_path))
    assert set(found) == {
        *("data cursor 1", "data cursor 2", "resume 1", "resume 2", "run 2"),
    }
    assert "taken" in found["data cursor 1"]


def test_an_optimizer_state_that_is_not_restored(substrate, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Optimizer, "load_state_dict", lambda *arguments: None)
    found = failures(examine(substrate, tmp_path, PLAIN[:1]))
    assert set(found) == {"state 1", "resume 1", "run 1"}
    assert found["state 1"].startswith(
        "differs from the saved state: blocks.0.attention_norm.weight"
    )


def test_an_identity_insertion_that_changes_the_output(
    substrate, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Block, "make_identity", lambda block: None)
    found = failures(examine(substrate, tmp_path, [Stage(1), Stage(1, insertion="identity")]))
    assert set(found) == {"insertion 2"}
    assert "the hidden states changed" in found["insertion 2"]


def test_blocks_in_the_wrong_place(substrate, tmp_path: Path, monkeypatch) -> None:
    def on_top(old: int, n: int, at: object = None) -> tuple[int, ...]:
        return tuple(range(old, old + n))

    monkeypatch.setattr(decoder_module, "insertion_indices", on_top)
    found = failures(examine(substrate, tmp_path, [Stage(2), Stage(1, at=(1,))]))
    assert "not at [1]" in found["insertion 2"]


def test_a_table_that_has_changed(tmp_path: Path) -> None:
    def change(model: Decoder) -> None:
        # In place, so that the substrate in memory has changed with it.
        assert model.embedding.table is not None
        model.embedding.table[3, 1] += 0.01

    found = failures(examine(make_substrate(), tmp_path, PLAIN[:1], spoil=change))
    assert set(found) == {"substrate 1"}
    assert found["substrate 1"].startswith("1 rows")


def test_data_of_another_substrate(substrate, tmp_path: Path) -> None:
    other = Substrate.build(characters="abcdefghij klm", n_components=8)
    model = make_model(other)
    data = make_data(substrate, tmp_path / "tokens")
    diagnosis = diagnose(model, data, GrowthSchedule(PLAIN[:1]), make_train(), steps=2)
    assert "the data was encoded with the substrate" in failures(diagnosis)["substrate 1"]


@pytest.mark.parametrize(("name", "trains"), [("blocks.0.mlp.up.bias", 1), ("lm_head.bias", 0)])
def test_an_active_set_that_is_another(
    substrate, tmp_path: Path, monkeypatch, name: str, trains: int
) -> None:
    def other(model, shape):
        active = freeze.select_active(model, shape)
        parameter = dict(model.named_parameters())[name]
        if parameter.requires_grad != trains:
            parameter.requires_grad_(bool(trains))
            active = {n: p for n, p in model.named_parameters() if p.requires_grad}
        return active

    monkeypatch.setattr(examination, "select_active", other)
    found = failures(examine(substrate, tmp_path))
    what = "active but should be frozen" if trains else "frozen but should be active"
    assert found["active set 2"] == f"{what}: {name}"
    assert ("active set 1" in found) == (not trains)


def test_a_merge_that_loses_the_correction(substrate, tmp_path: Path, monkeypatch) -> None:
    def lossy(layer: LoRALinear) -> Merged:
        merged = original(layer)
        merged.linear.weight.data.copy_(layer.weight)
        return merged

    original = LoRALinear.merge
    monkeypatch.setattr(LoRALinear, "merge", lossy)
    found = failures(examine(substrate, tmp_path, [Stage(1), Stage(0, lora=LoRA(rank=2))]))
    assert "the hidden states changed" in found["merge 2"]


def test_a_run_that_resumes_as_another(substrate, tmp_path: Path, monkeypatch) -> None:
    def other(running, state) -> None:
        original(running, state)
        running.model.lm_head.bias.data += 1e-3

    original = run.GrowthRun.load_state_dict
    monkeypatch.setattr(run.GrowthRun, "load_state_dict", other)
    found = failures(examine(substrate, tmp_path))
    assert set(found) == {"run 2"}
    assert "the final weights of the killed and resumed run differ" in found["run 2"]


def test_a_loss_that_is_not_finite(substrate, tmp_path: Path) -> None:
    def spoil(model: Decoder) -> None:
        model.lm_head.bias.data[0] = float("nan")

    found = failures(examine(substrate, tmp_path, PLAIN[:1], spoil=spoil))
    assert "gradients that are not finite" in found["gradients 1"]
    assert "the loss became nan" in found["training 1"]


def test_an_impossible_stage(substrate, tmp_path: Path) -> None:
    diagnosis = examine(substrate, tmp_path, [Stage(1), Stage(1, window=5), Stage(1)])
    assert "expected at most 2, the number of blocks, got 5" in failures(diagnosis)["active set 2"]
    third = [f for f in diagnosis.findings if f.stage == 3]
    assert third
    assert all(f.ok is None and f.detail == "an earlier stage failed" for f in third)


def test_one_step_cannot_be_stopped(substrate, tmp_path: Path) -> None:
    data = make_data(make_substrate(), tmp_path / "tokens")
    with pytest.raises(ConfigError, match="at least 2 steps"):
        diagnose(make_model(substrate), data, GrowthSchedule(PLAIN), make_train(), steps=1)

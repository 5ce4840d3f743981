"""LoRA is trained in a stage, then merged into the weights and saved as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from growing import digest, make_model, make_train
from safetensors.torch import load_file

from fastgrow.errors import FastgrowError
from fastgrow.growth import GrowthSchedule, LoRA, Stage, grow, stage_shape
from fastgrow.growth.lora import adapters, attach_lora, merge_lora
from fastgrow.nn import Decoder, DecoderConfig, LoRALinear
from fastgrow.training import Trainer

FIRST, PHASE = Stage(2, 256), Stage(1, 256, lora=LoRA(rank=3, alpha=6.0))
TARGETS = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")


@pytest.fixture
def phase(substrate, data, tmp_path: Path):
    """A run of two stages, the second with LoRA, and a run of the first alone."""

    def run(*stages: Stage, out: Path | None):
        # Per-stage schedules: the first stage is the same in both runs.
        train = make_train(pick="last", schedule="per-stage")
        return grow(
            make_model(substrate), data, GrowthSchedule(stages), train=train, out=out, quiet=True
        )

    return run(FIRST, out=None), run(FIRST, PHASE, out=tmp_path / "run")


def test_the_next_stage_has_a_plain_model(phase, tmp_path: Path) -> None:
    base, merged = phase
    assert not adapters(merged.model)
    assert sorted(merged.model.blocks[0].state_dict()) == sorted(base.model.blocks[0].state_dict())
    loaded = Decoder.load(tmp_path / "run" / "model")
    assert loaded.n_layer == 3
    assert digest(loaded) == digest(merged.model)


def test_peft_files_contain_what_was_merged(phase, tmp_path: Path) -> None:
    """base + scale · B · A, by PEFT's rules for names, ranks and alphas, is the merged weight."""
    base, merged = phase
    folder = tmp_path / "run" / "adapters" / "stage-2"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 6.0, "none")
    assert config["fan_in_fan_out"] is False
    names = [f"blocks.{i}.{target}" for i in (0, 1) for target in TARGETS]
    assert sorted(config["target_modules"]) == sorted(names)
    keys = {f"base_model.model.{name}.lora_{ab}.weight" for name in names for ab in "AB"}
    assert set(tensors) == keys
    before, after = base.model.state_dict(), merged.model.state_dict()
    for name in names:
        rank = config["rank_pattern"].get(name, config["r"])
        alpha = config["alpha_pattern"].get(name, config["lora_alpha"])
        a = tensors[f"base_model.model.{name}.lora_A.weight"]
        b = tensors[f"base_model.model.{name}.lora_B.weight"]
        weight = before[f"{name}.weight"]
        assert a.shape == (rank, weight.shape[1])
        assert b.shape == (weight.shape[0], rank)
        torch.testing.assert_close(
            weight + alpha / rank * (b @ a), after[f"{name}.weight"], rtol=1e-6, atol=1e-7
        )
        assert not torch.equal(weight, after[f"{name}.weight"])


def test_only_the_adapted_weights_differ_after_the_merge(phase) -> None:
    base, merged = phase
    before, after = base.model.state_dict(), merged.model.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    corrected = {f"blocks.{i}.{target}.weight" for i in (0, 1) for target in TARGETS}
    assert {n for n in moved if n.startswith("blocks.")} == corrected


def test_the_merged_model_computes_what_the_adapted_one_did(substrate) -> None:
    model = make_model(substrate)
    model.append_blocks(2)
    ids = torch.arange(8)[None] % model.vocab_size
    plain = model(ids)
    schedule = GrowthSchedule([Stage(0, lora=LoRA(rank=4, alpha=8.0))])
    shape = stage_shape(schedule, 0, model.config, first_depth=2)
    attach_lora(model, schedule.stages[0].lora, shape)
    torch.testing.assert_close(model(ids), plain, rtol=0, atol=1e-6)
    for layer in adapters(model).values():
        layer.lora_B.data.normal_(0, 0.1)
    adapted = model(ids)
    drift = merge_lora(model)
    assert drift is not None
    torch.testing.assert_close(model(ids), adapted, rtol=1e-5, atol=1e-5)
    assert (adapted - plain).abs().max() > 1e-3
    assert drift.largest == 0.0, "a float32 sum of float32 weights is stored as it is"


def test_half_precision_weights_have_drift(substrate) -> None:
    model = make_model(substrate)
    model.append_blocks(1)
    model.to(torch.bfloat16)
    schedule = GrowthSchedule([Stage(0, lora=LoRA(rank=4))])
    attach_lora(
        model, schedule.stages[0].lora, stage_shape(schedule, 0, model.config, first_depth=1)
    )
    assert all(layer.lora_A.dtype == torch.float32 for layer in adapters(model).values())
    for layer in adapters(model).values():
        layer.lora_B.data.normal_(0, 0.1)
    drift = merge_lora(model)
    assert drift is not None
    assert 0 < drift.largest < 1e-2
    assert 0 < drift.relative < 1


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu2", "swiglu"])
def test_an_adapted_block_is_the_fused_one_with_its_sums(activation) -> None:
    config = DecoderConfig(
        vocab_size=9, d_model=16, n_head=4, n_kv_head=2, n_layer=1, n_embed=8, max_seq_len=8
    ).to_dict()
    config = DecoderConfig.from_dict({**config, "activation": activation})
    torch.manual_seed(0)
    model = Decoder(config, table=torch.randn(9, 8))
    schedule = GrowthSchedule([Stage(0, lora=LoRA(rank=2))])
    shape = stage_shape(schedule, 0, config, first_depth=1)
    attach_lora(model, schedule.stages[0].lora, shape)
    assert len(adapters(model)) == (5 if activation == "swiglu" else 4)
    for layer in adapters(model).values():
        layer.lora_B.data.normal_(0, 0.1)
    ids = torch.arange(8)[None]
    adapted = model(ids)
    merge_lora(model)
    torch.testing.assert_close(model(ids), adapted, rtol=1e-5, atol=1e-5)


def test_queries_keys_and_values_are_corrected_separately(substrate) -> None:
    linear = torch.nn.Linear(16, 12, bias=False)
    weight = linear.weight.detach().clone()
    layer = LoRALinear(linear, 2, parts=(8, 2, 2))
    assert layer.lora_A.shape == (6, 16)
    assert layer.lora_B.shape == (12, 2)
    layer.lora_B.data.normal_()
    correction = layer.merge().linear.weight - weight
    for rows, a in zip((slice(0, 8), slice(8, 10), slice(10, 12)), (0, 2, 4), strict=True):
        expected = layer.lora_B[rows] @ layer.lora_A[a : a + 2]
        torch.testing.assert_close(correction[rows], expected, rtol=1e-5, atol=1e-6)


def test_the_record_and_the_log_contain_rank_and_drift(phase, tmp_path: Path) -> None:
    stages = phase[1].stages
    assert stages[0].rank is None
    assert stages[0].drift is None
    assert (stages[1].rank, stages[1].drift, stages[1].relative_drift) == (3, 0.0, 0.0)
    record = json.loads((tmp_path / "run" / "growth.json").read_text())
    assert record[1]["rank"] == 3
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    merged = [row for row in rows if row.get("event") == "merged"]
    assert [(row["stage"], row["drift"]) for row in merged] == [("2/2", 0.0)]


def test_a_base_weight_that_changes_raises(substrate, data, monkeypatch) -> None:
    original = Trainer.run

    def run(trainer: Trainer, *args: object, **kwargs: object) -> object:
        result = original(trainer, *args, **kwargs)
        for layer in adapters(trainer.model).values():
            layer.weight.data.view(-1)[0] += 1e-6
        return result

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(FastgrowError, match="stage 2: a frozen tensor changed"):
        grow(
            make_model(substrate),
            data,
            GrowthSchedule([FIRST, PHASE]),
            train=make_train(),
            quiet=True,
        )

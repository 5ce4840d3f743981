"""Offloaded experts give the same results as experts on the device."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from compose_models import make_decoder, random_text

from fastgrow.compose import Adapter, CallableExpert, Ensemble, Mean, Posterior, Rule, load
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.substrate import Substrate


def make(substrate: Substrate, rule: Rule | None = None) -> Ensemble:
    experts = {name: make_decoder(substrate, seed) for seed, name in enumerate("abc")}
    return Ensemble(experts, rule)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("rule", [Mean(), Posterior()], ids=str)
def test_offloading_does_not_change_the_results(
    rule: Rule, place: str, substrate: Substrate, tmp_path: Path
) -> None:
    trio = make(substrate, rule)
    frozen = trio.experts["b"]
    frozen.blocks.requires_grad_(False)
    ids = random_text(substrate, 0)
    with torch.no_grad():
        logits, loss = trio(ids), trio.loss(ids, ids.roll(-1, 1))
    text = trio.generate("аб", max_new_tokens=8, seed=0)
    held = trio.num_parameters(include_table=False)
    trio.offload("b", tmp_path / "b" if place == "disk" else None)
    assert trio.names == ("a", "b", "c")
    assert trio.num_parameters(include_table=False) == held * 2 // 3
    with torch.no_grad():
        torch.testing.assert_close(trio(ids), logits, rtol=0, atol=0)
        torch.testing.assert_close(trio.loss(ids, ids.roll(-1, 1)), loss)
    assert trio.generate("аб", max_new_tokens=8, seed=0) == text
    trio.save(tmp_path / "saved")
    saved = load(tmp_path / "saved", substrate=substrate)
    with torch.no_grad():
        torch.testing.assert_close(saved(ids), logits, rtol=0, atol=0)
    trio.recall("b")
    back = trio.experts["b"]
    assert trio.num_parameters(include_table=False) == held
    assert not any(p.requires_grad for p in back.blocks.parameters())
    assert back.lm_head.weight.requires_grad
    assert back.embedding.table.data_ptr() == trio.experts["a"].embedding.table.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(trio(ids), logits, rtol=0, atol=0)


def test_an_expert_on_the_disk_is_not_in_memory(substrate: Substrate, tmp_path: Path) -> None:
    trio = make(substrate)
    weight = weakref.ref(trio.experts["b"].lm_head.weight)
    trio.offload("b", tmp_path / "b")
    gc.collect()
    assert weight() is None
    trio(random_text(substrate, 0))
    gc.collect()
    heads = [x for x in gc.get_objects() if type(x).__name__ == "LMHead"]
    assert sum(head.weight.shape[0] == len(substrate) for head in heads) == 2


def test_missing_files_are_named(substrate: Substrate, tmp_path: Path) -> None:
    trio = make(substrate)
    trio.offload("b", tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        trio(random_text(substrate, 0))
    assert trio.names == ("a", "b", "c")


def test_experts_that_cannot_be_offloaded_are_named(substrate: Substrate, tmp_path: Path) -> None:
    trio = make(substrate)
    with pytest.raises(ConfigError, match="there is no expert 'd'"):
        trio.offload("d")
    with pytest.raises(
        ConfigError, match="expert 'a' is not offloaded; it is on the device already"
    ):
        trio.recall("a")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        trio.offload("a", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    trio.offload("a")
    with pytest.raises(ConfigError, match="expert 'a' is a OffloadedExpert; only a Decoder can"):
        trio.offload("a")
    with pytest.raises(ConfigError, match="but expert 'a' is a OffloadedExpert; expected a Dec"):
        trio.reweight(Adapter(2))
    trio.recall("a")
    trio.reweight(Adapter(2))
    with pytest.raises(ConfigError, match="its experts cannot be offloaded"):
        trio.offload("a")
    guest = CallableExpert(trio.experts["a"], vocab_size=len(substrate), max_seq_len=8)
    with pytest.raises(ConfigError, match="is a CallableExpert; only a Decoder"):
        Ensemble({"g": guest}).offload("g")

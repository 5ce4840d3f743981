"""Model folders: saving and loading; errors for damaged files; failed saves lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import TinySubstrate, small_config

from fastgrow._files import sha256_file
from fastgrow.errors import CheckpointError
from fastgrow.nn import Decoder


@pytest.fixture
def saved(model: Decoder, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    """Change the weights and update the checksums."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    content["sha256"]["model.safetensors"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(content))


def test_round_trip(
    model: Decoder, saved: Path, substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    loaded = Decoder.load(saved, substrate=substrate)
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.config == model.config
    assert loaded.embedding.table.data_ptr() == model.embedding.table.data_ptr()
    assert all(p.requires_grad for p in loaded.parameters())
    assert loaded.generate("ab", max_new_tokens=5, seed=0) == model.generate(
        "ab", max_new_tokens=5, seed=0
    )


def test_grown_model_is_loaded_with_its_depth(
    model: Decoder, substrate: TinySubstrate, ids: torch.Tensor, tmp_path: Path
) -> None:
    model.append_blocks(2)
    model.save(tmp_path / "m")
    loaded = Decoder.load(tmp_path / "m", substrate=substrate)
    assert loaded.n_layer == 5
    assert torch.equal(loaded(ids), model(ids))
    loaded.append_blocks(1)
    assert loaded.blocks[5].mlp.up.weight.device.type == "cpu"  # type: ignore[union-attr]


@pytest.mark.parametrize("embedding", ["frozen", "trainable"])
def test_round_trip_with_a_custom_table(embedding: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    model = Decoder(small_config(embedding=embedding), table=torch.randn(260, 16))
    model.save(tmp_path / "m")
    loaded = Decoder.load(tmp_path / "m")
    assert torch.equal(loaded(ids), model(ids))
    assert (tmp_path / "m" / "table.safetensors").exists() == (embedding == "frozen")


def test_round_trip_with_a_table_and_a_substrate(
    substrate: TinySubstrate, ids: torch.Tensor, tmp_path: Path
) -> None:
    table = torch.randn(len(substrate), 16)
    model = Decoder(small_config(vocab_size=len(substrate)), substrate, table=table)
    assert model.own_table is not None
    model.save(tmp_path / "m")
    loaded = Decoder.load(tmp_path / "m", substrate=substrate)
    assert torch.equal(loaded.embedding.table, table)  # type: ignore[arg-type]
    assert torch.equal(loaded(ids), model(ids))
    assert Decoder(small_config(vocab_size=len(substrate)), substrate).own_table is None


def test_dtype_and_device(saved: Path, substrate: TinySubstrate) -> None:
    loaded = Decoder.load(saved, substrate=substrate, device="cpu", dtype=torch.float64)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert loaded.rope.cos.dtype == torch.float32


def test_config_json_describes_the_model(saved: Path, substrate: TinySubstrate) -> None:
    content = json.loads((saved / "config.json").read_text())
    assert content["kind"] == "decoder"
    assert content["fingerprint"] == substrate.fingerprint
    assert set(content["sha256"]) == {"model.safetensors", "substrate.json"}
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata()["fingerprint"] == substrate.fingerprint


def test_saving_again_replaces_the_model_but_not_other_files(model: Decoder, saved: Path) -> None:
    model.save(saved)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"'notes\.txt', which would be deleted"):
        model.save(saved)
    assert (saved / "notes.txt").read_text() == "mine"


def test_failed_save_keeps_the_previous_one(
    model: Decoder,
    saved: Path,
    substrate: TinySubstrate,
    ids: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = model(ids)

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(substrate, "save", full_disk)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(OSError, match="No space left"):
        model.save(saved)
    assert torch.equal(Decoder.load(saved, substrate=substrate)(ids), expected)
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_truncated_file(saved: Path, substrate: TinySubstrate) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or changed"):
        Decoder.load(saved, substrate=substrate)


def test_flipped_bit(saved: Path, substrate: TinySubstrate) -> None:
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or changed"):
        Decoder.load(saved, substrate=substrate)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "substrate.json"])
def test_missing_file(saved: Path, substrate: TinySubstrate, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: no such file"):
        Decoder.load(saved, substrate=substrate)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Decoder.load(tmp_path / "nowhere")


def test_missing_key(saved: Path, substrate: TinySubstrate) -> None:
    rewrite(saved, lambda state: state.pop("lm_head.bias"))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the key 'lm_head\.bias' is missing"
    ):
        Decoder.load(saved, substrate=substrate)


def test_unexpected_key(saved: Path, substrate: TinySubstrate) -> None:
    rewrite(saved, lambda state: state.update(extra=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="the key 'extra' is not one of the model's"):
        Decoder.load(saved, substrate=substrate)


def test_wrong_shape(saved: Path, substrate: TinySubstrate) -> None:
    rewrite(saved, lambda state: state.update({"lm_head.bias": torch.zeros(9)}))
    with pytest.raises(CheckpointError, match=r"'lm_head\.bias' has shape \[9\], expected \[260\]"):
        Decoder.load(saved, substrate=substrate)


def test_not_safetensors(saved: Path, substrate: TinySubstrate) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(b"x" * 100)
    content = json.loads((saved / "config.json").read_text())
    content["sha256"]["model.safetensors"] = sha256_file(file)
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        Decoder.load(saved, substrate=substrate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ensemble"}, "holds a 'ensemble', expected a 'decoder'"),
        ({"format": 99}, "format 99 by a later version of fastgrow"),
        ({"config": 3}, "'config' is missing or not a dict"),
        ({"config": {"vocab_size": 260, "depth": 1}}, r"config\.json: .*unknown field 'depth'"),
        ({"config": {"vocab_size": "many"}}, r"config\.json: .*vocab_size: expected"),
    ],
)
def test_bad_config(
    saved: Path, substrate: TinySubstrate, change: dict[str, Any], message: str
) -> None:
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=message):
        Decoder.load(saved, substrate=substrate)


def test_config_that_is_not_json(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        Decoder.load(saved)


def test_another_substrate_is_rejected(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="trained on a substrate of fingerprint 0000"):
        Decoder.load(saved, substrate=TinySubstrate(1))

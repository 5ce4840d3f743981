"""Saving and loading ensembles: equal results, one shared table, errors for damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import make_decoder, random_text
from torch import Tensor

import fastgrow as fg
from fastgrow.compose import Ensemble, Mean, Posterior, ProbabilityMean, Rule, Weighted
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.nn import Decoder
from fastgrow.substrate import Substrate


@pytest.fixture
def ids(substrate: Substrate) -> Tensor:
    return random_text(substrate, 4)


@pytest.fixture
def duo(substrate: Substrate) -> Ensemble:
    first = make_decoder(substrate, 1, dtype=torch.float32)
    second = make_decoder(substrate, 2, d_model=16, n_layer=2, dtype=torch.float32)
    return Ensemble({"русский": first, "zh": second})


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        Weighted({"zh": 2, "русский": 1}, normalize=False),
        ProbabilityMean(),
        Posterior({"zh": 2, "русский": 1}, forgetting=0.9, temperature=1.5),
    ],
    ids=str,
)
def test_round_trip(duo: Ensemble, ids: Tensor, tmp_path: Path, rule: Rule) -> None:
    duo.reweight(rule)
    duo.save(tmp_path / "duo")
    loaded = fg.load(tmp_path / "duo")
    assert isinstance(loaded, Ensemble)
    assert loaded.rule == rule
    assert loaded.names == ("русский", "zh")
    assert torch.equal(loaded(ids), duo(ids))
    assert torch.equal(loaded.loss(ids, ids), duo.loss(ids, ids))
    assert loaded.generate("аб", seed=1) == duo.generate("аб", seed=1)
    assert isinstance(Ensemble.load(tmp_path / "duo"), Ensemble)


def test_the_substrate_is_stored_once_and_the_table_held_once(
    duo: Ensemble, tmp_path: Path
) -> None:
    trio = Ensemble({"a": duo, "b": duo.experts["zh"]})
    trio.save(tmp_path / "trio")
    files = sorted(
        file.relative_to(tmp_path / "trio").as_posix()
        for file in (tmp_path / "trio").rglob("*")
        if file.is_file()
    )
    assert files == [
        "config.json",
        "experts/a/config.json",
        "experts/a/experts/zh/config.json",
        "experts/a/experts/zh/model.safetensors",
        "experts/a/experts/русский/config.json",
        "experts/a/experts/русский/model.safetensors",
        "experts/b/config.json",
        "experts/b/model.safetensors",
        "substrate.safetensors",
        "tokenizer.json",
    ]
    loaded = fg.load(tmp_path / "trio")
    decoders = [module for module in loaded.modules() if isinstance(module, Decoder)]
    assert len(decoders) == 3
    assert len({decoder.embedding.table.data_ptr() for decoder in decoders}) == 1
    assert {id(decoder.substrate) for decoder in decoders} == {id(loaded.substrate)}


def test_nested_ensembles_come_back(duo: Ensemble, ids: Tensor, tmp_path: Path) -> None:
    duo.reweight(Posterior())
    outer = Ensemble({"duo": duo, "alone": duo.experts["zh"]}, ProbabilityMean())
    outer.save(tmp_path / "outer")
    loaded = fg.load(tmp_path / "outer")
    assert loaded.experts["duo"].rule == Posterior()
    assert torch.equal(loaded(ids), outer(ids))


def test_load_reads_single_models_too(duo: Ensemble, ids: Tensor, tmp_path: Path) -> None:
    duo.experts["zh"].save(tmp_path / "zh")
    loaded = fg.load(tmp_path / "zh")
    assert isinstance(loaded, Decoder)
    assert torch.equal(loaded(ids), duo.experts["zh"](ids))


def test_load_reads_the_folder_of_a_run(duo: Ensemble, tmp_path: Path) -> None:
    duo.experts[duo.names[0]].save(tmp_path / "run" / "model")
    assert isinstance(fg.load(tmp_path / "run"), Decoder)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the run has no model yet"):
        fg.load(tmp_path / "new")


def test_load_shares_a_substrate_and_casts(
    duo: Ensemble, substrate: Substrate, other_substrate: Substrate, tmp_path: Path
) -> None:
    duo.save(tmp_path / "duo")
    loaded = fg.load(tmp_path / "duo", substrate=substrate, dtype=torch.float64)
    assert loaded.substrate is substrate
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    with pytest.raises(CheckpointError, match="experts use the substrate with fingerprint"):
        fg.load(tmp_path / "duo", substrate=other_substrate)


def test_models_of_bare_ids(ids: Tensor, substrate: Substrate, tmp_path: Path) -> None:
    table = torch.randn(len(substrate), 16, generator=torch.Generator().manual_seed(0))
    models = {
        str(seed): make_decoder(None, seed, table=table, vocab_size=len(substrate))
        for seed in (1, 2)
    }
    ensemble = Ensemble(models, Posterior())
    ensemble.save(tmp_path / "bare")
    loaded = fg.load(tmp_path / "bare", dtype=torch.float64)
    assert loaded.substrate is None
    assert torch.equal(loaded(ids), ensemble(ids))
    pointers = {model.embedding.table.data_ptr() for model in loaded.experts.values()}
    assert len(pointers) == 1


def test_saving_again_replaces_what_was_saved(
    duo: Ensemble, ids: Tensor, substrate: Substrate, tmp_path: Path
) -> None:
    duo.save(tmp_path / "m")
    duo.add("de", make_decoder(substrate, 8, dtype=torch.float32))
    duo.remove("zh")
    duo.save(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m" / "experts").iterdir()) == [
        "de",
        "русский",
    ]
    assert torch.equal(fg.load(tmp_path / "m")(ids), duo(ids))
    duo.experts["de"].save(tmp_path / "m")
    assert torch.equal(fg.load(tmp_path / "m")(ids), duo.experts["de"](ids))
    duo.save(tmp_path / "m")
    assert torch.equal(fg.load(tmp_path / "m")(ids), duo(ids))


@pytest.mark.parametrize("place", ["notes.txt", "experts/notes.txt", "experts/zh/notes.txt"])
def test_saving_spares_what_is_not_ours(duo: Ensemble, tmp_path: Path, place: str) -> None:
    duo.save(tmp_path / "duo")
    (tmp_path / "duo" / place).write_text("mine")
    with pytest.raises(FileExistsError, match=place.split("/")[0]):
        duo.save(tmp_path / "duo")
    assert (tmp_path / "duo" / place).read_text() == "mine"
    with pytest.raises(FileExistsError):
        duo.experts["zh"].save(tmp_path / "duo")
    assert (tmp_path / "duo" / place).read_text() == "mine"


def test_a_save_that_fails_leaves_what_was_there(
    duo: Ensemble, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duo.save(tmp_path / "duo")
    before = duo(ids)
    with torch.no_grad():
        duo.experts["русский"].lm_head.weight.zero_()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(duo.experts["zh"], "save", full)
    with pytest.raises(OSError, match="No space left"):
        duo.save(tmp_path / "duo")
    assert torch.equal(fg.load(tmp_path / "duo")(ids), before)
    assert [path.name for path in tmp_path.iterdir()] == ["duo"]


def test_only_our_own_models_can_be_saved(duo: Ensemble, tmp_path: Path) -> None:
    class Guest:
        def __init__(self, model: Decoder) -> None:
            self.substrate, self.device = model.substrate, model.device
            self.vocab_size, self.max_seq_len = model.vocab_size, model.max_seq_len
            self.loss, self.new_cache, self.call = model.loss, model.new_cache, model.forward

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.call(*args, **kwargs)

    duo.add("guest", Guest(duo.experts["zh"]))
    with pytest.raises(ConfigError, match="'guest' is a Guest; only a Decoder or an Ensemble can"):
        duo.save(tmp_path / "duo")
    assert not list(tmp_path.iterdir())


def test_missing_and_unknown_folders_are_named(duo: Ensemble, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        fg.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/config\.json: no such file"):
        fg.load(tmp_path / "empty")
    config = tmp_path / "empty" / "config.json"
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"empty/config\.json: not valid JSON"):
        fg.load(tmp_path / "empty")
    for content, kind in (
        ("[]", "None"),
        ('{"kind": "oracle"}', "'oracle'"),
        ('{"kind": ["decoder"]}', r"\['decoder'\]"),
    ):
        config.write_text(content)
        message = rf"config\.json: holds a model of kind {kind}; expected one of decoder, ensemble"
        with pytest.raises(CheckpointError, match=message):
            fg.load(tmp_path / "empty")
    duo.experts["zh"].save(tmp_path / "zh")
    with pytest.raises(CheckpointError, match="holds a 'decoder', expected a 'ensemble'"):
        Ensemble.load(tmp_path / "zh")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"].update(rule={"kind": "vote"}), r"rule .*'vote'.* is unknown"),
        (lambda c: c["config"].pop("rule"), "rule None is unknown"),
        (
            lambda c: c["config"].update(rule={"kind": "weighted", "weights": {"zh": 1}}),
            "expert 'русский' has no weight",
        ),
        (lambda c: c["config"].update(experts="zh"), "'experts' is missing or not a list"),
        (lambda c: c["config"].update(experts=["zh", "de"]), "expert 'de', but not the checksum"),
        (lambda c: c["config"].update(experts=["zh", "zh"]), "the expert 'zh' twice"),
        (lambda c: c.update(format=99), "format 99"),
        (lambda c: c.pop("sha256"), "'sha256' is missing"),
        (lambda c: c.update(fingerprint="0" * 64), "fingerprint 0000"),
    ],
)
def test_a_bad_config_is_named(
    duo: Ensemble, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    duo.save(tmp_path / "duo")
    edit(tmp_path / "duo" / "config.json", change)
    with pytest.raises(CheckpointError, match=message) as error:
        fg.load(tmp_path / "duo")
    assert str(tmp_path / "duo") in str(error.value)


@pytest.mark.parametrize(
    "file",
    [
        "experts/zh/model.safetensors",
        "experts/zh/config.json",
        "substrate.safetensors",
        "tokenizer.json",
    ],
)
def test_damage_is_named(duo: Ensemble, tmp_path: Path, file: str) -> None:
    duo.save(tmp_path / "duo")
    damaged = tmp_path / "duo" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=file):
        fg.load(tmp_path / "duo")
    damaged.unlink()
    with pytest.raises(CheckpointError, match=file):
        fg.load(tmp_path / "duo")


def test_an_expert_from_elsewhere_is_noticed(
    duo: Ensemble, substrate: Substrate, tmp_path: Path
) -> None:
    duo.save(tmp_path / "duo")
    slot = tmp_path / "duo" / "experts" / "zh"
    shutil.rmtree(slot)
    make_decoder(substrate, 9).save(slot, with_substrate=False)
    with pytest.raises(CheckpointError, match=r"experts/zh/config\.json: damaged or changed"):
        fg.load(tmp_path / "duo")

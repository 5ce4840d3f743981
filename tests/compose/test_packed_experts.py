"""Experts on a substrate of codes hold its bits once."""

from __future__ import annotations

from pathlib import Path

import torch

from fastgrow.compose import Ensemble, Mean
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate


def expert(substrate: Substrate, seed: int) -> Decoder:
    config = DecoderConfig(len(substrate), d_model=32, n_layer=1, n_head=2)
    return Decoder(config, substrate, generator=torch.Generator().manual_seed(seed))


def test_bits_are_held_and_counted_once(tmp_path: Path) -> None:
    first, second = (Substrate.build(characters="abc d\n", codes="id-16") for _ in range(2))
    ensemble = Ensemble({"a": expert(first, 0), "b": expert(second, 1)}, rule=Mean())
    experts = list(ensemble.experts.values())
    assert len({model.embedding.address for model in experts}) == 1
    counted = ensemble.num_parameters() - ensemble.num_parameters(include_table=False)
    assert counted == len(first) * 16
    ensemble.save(tmp_path / "duo")
    ids = torch.tensor([first.encode("abc")])
    assert torch.equal(Ensemble.load(tmp_path / "duo")(ids), ensemble(ids))

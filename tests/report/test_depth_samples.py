"""A model generates with only its lowest blocks, and has all of them again afterwards."""

from __future__ import annotations

import pytest
import torch

import fastgrow as fg
from fastgrow.report.inside.depth import depths, lowest_blocks, text_bits


@pytest.fixture
def model(substrate: fg.Substrate) -> fg.Decoder:
    torch.manual_seed(3)
    config = fg.DecoderConfig(
        vocab_size=len(substrate), d_model=16, n_head=2, n_layer=3, max_seq_len=16
    )
    return fg.Decoder(config, substrate)


def test_the_lowest_blocks_with_the_same_head(model: fg.Decoder) -> None:
    ids = torch.tensor([model.substrate.encode("the cat")])
    whole, lowest = model(ids), model.blocks[0]
    with lowest_blocks(model, 1) as cut:
        x = lowest(model.embedding(ids), model.rope(ids.shape[1]), None)
        assert torch.equal(cut(ids), model.lm_head(model.final_norm(x)))
        assert cut.generate("the", max_new_tokens=3, seed=0).startswith("the")
    assert torch.equal(model(ids), whole)
    with pytest.raises(ZeroDivisionError), lowest_blocks(model, 2):
        _ = 1 / 0
    assert model.n_layer == 3


def test_bits_are_those_of_the_model(model: fg.Decoder) -> None:
    text = "the cat sat"
    ids = torch.tensor([[model.substrate.bos_id, *model.substrate.encode(text)]])
    chosen = model(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert text_bits(model, text) == pytest.approx(-chosen.mean().item() / 0.6931471806, rel=1e-5)
    assert text_bits(model, text * 10) > 0  # longer than the context


def test_the_last_depth_is_the_full_depth() -> None:
    assert depths(1) == [1]
    assert depths(6) == [1, 2, 3, 4, 5, 6]
    assert depths(16) == [1, 4, 7, 10, 13, 16]
    for whole in range(1, 60):
        assert depths(whole)[-1] == whole
        assert len(depths(whole)) <= 6

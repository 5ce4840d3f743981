"""A model's key changes with everything that its answers depend on."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from fastgrow.compose import Ensemble, Mean, ProbabilityMean, Weighted
from fastgrow.evaluation.identity import model_key
from fastgrow.nn import Decoder, DecoderConfig

CONFIG = DecoderConfig(vocab_size=11, d_model=16, n_layer=1, n_head=2, n_embed=4, max_seq_len=8)


def decoder(seed: int = 0, config: DecoderConfig = CONFIG, table_seed: int = 9) -> Decoder:
    table = torch.randn(11, 4, generator=torch.Generator().manual_seed(table_seed))
    return Decoder(config, table=table, generator=torch.Generator().manual_seed(seed))


def test_equal_models_have_equal_keys() -> None:
    assert model_key(decoder()) == model_key(decoder())
    assert model_key(decoder()) == model_key(decoder().eval())


def test_whatever_differs_changes_the_key() -> None:
    base = decoder()
    nudged = decoder()
    with torch.no_grad():
        nudged.blocks[0].mlp.up.weight[0, 0] += 1e-3  # type: ignore[union-attr]
    deeper = decoder()
    deeper.append_blocks(1, "identity")
    one, two = decoder(1), decoder(2)
    experts = {"one": one, "two": two}
    different: list[nn.Module] = [
        base,
        nudged,
        deeper,
        decoder(table_seed=8),
        decoder(config=dataclasses.replace(CONFIG, n_head=4)),
        decoder(config=dataclasses.replace(CONFIG, rope_base=500.0)),
        decoder(config=dataclasses.replace(CONFIG, max_seq_len=4)),
        decoder().double(),
        Ensemble(experts, Mean()),
        Ensemble(experts, ProbabilityMean()),
        Ensemble(experts, Weighted({"one": 0.3, "two": 0.7})),
        Ensemble(experts, Weighted({"one": 0.4, "two": 0.6})),
        Ensemble({"two": two, "one": one}, Weighted({"one": 0.4, "two": 0.6})),
    ]
    keys = [model_key(model) for model in different]
    assert len(set(keys)) == len(keys), keys

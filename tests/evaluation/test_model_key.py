"""The key of a model changes with everything that affects its answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from rigged import CharacterSubstrate
from torch import nn

from fastgrow.compose import CallableExpert, Ensemble, Mean, ProbabilityMean, Weighted
from fastgrow.errors import ConfigError
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


def test_a_substrates_last_digits_do_not_change_the_key() -> None:
    """They differ between machines, so the fingerprint is used instead of the table."""
    keys = []
    for error in (0.0, 1e-7):
        substrate = CharacterSubstrate()
        substrate.table += np.float32(error)
        config = dataclasses.replace(CONFIG, vocab_size=len(substrate))
        models = [
            Decoder(config, substrate, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
        ]
        keys.append(
            [model_key(models[0]), model_key(Ensemble(dict(zip("ab", models, strict=True))))]
        )
        # A separate table changes the key, also if the model has a substrate.
        table = torch.from_numpy(substrate.table)
        keys[-1].append(
            model_key(
                Decoder(config, substrate, table=table, generator=torch.Generator().manual_seed(0))
            )
        )
    first, second = keys
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len({*first, *second}) == 4


def test_models_with_parts_outside_the_state_dict_need_an_explicit_key() -> None:
    one, two = decoder(1), decoder(2)

    def bare(seed: int) -> CallableExpert:
        model = decoder(seed)
        return CallableExpert(lambda ids: model(ids), vocab_size=11, max_seq_len=8)

    offloaded = Ensemble({"one": one, "two": two})
    offloaded.offload("two")
    for model, what in (
        (
            bare(1),
            "cannot identify the function of a CallableExpert by its weights: pass model_key",
        ),
        (Ensemble({"one": one, "guest": bare(2)}), "the function of a CallableExpert by"),
        (offloaded, "cannot identify the expert 'two', a OffloadedExpert, by its weights"),
        (Ensemble({"duo": offloaded}), "the expert 'two', a OffloadedExpert, by its"),
    ):
        with pytest.raises(ConfigError, match=what):
            model_key(model)
    guests = [CallableExpert(decoder(seed), vocab_size=11, max_seq_len=8) for seed in (1, 2)]
    assert model_key(guests[0]) != model_key(guests[1])
    offloaded.recall("two")
    assert model_key(offloaded) == model_key(Ensemble({"one": one, "two": two}))

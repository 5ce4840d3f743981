"""Separate weights for each row of a batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from compose_models import make_decoder, random_text

from fastgrow.compose import CallableExpert, Ensemble, Mean, PerRequest, Rule, Weighted, tune
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.substrate import Substrate
from fastgrow.training import TextData

WEIGHTS = {"a": [3, 0, 1], "b": [1, 2, 1]}
SHARES = [(0.75, 0.25), (0.0, 1.0), (0.5, 0.5)]


def make(substrate: Substrate, rule: Rule, *, plain: bool = True) -> Ensemble:
    models = [make_decoder(substrate, seed) for seed in (1, 2)]
    if plain:
        return Ensemble(dict(zip("ab", models, strict=True)), rule)
    guests = [
        CallableExpert(m, vocab_size=len(substrate), max_seq_len=24, vocabulary=substrate)
        for m in models
    ]
    return Ensemble(dict(zip("ab", guests, strict=True)), rule)


@pytest.mark.parametrize("plain", [True, False], ids=["decoders", "callables"])
def test_each_row_is_its_own_ensemble(plain: bool, substrate: Substrate) -> None:
    duo = make(substrate, PerRequest(WEIGHTS), plain=plain)
    ids = random_text(substrate, 0)
    targets = ids.roll(-1, 1).masked_fill(ids == substrate.pad_id, -100)
    rows = [
        make(substrate, Weighted({"a": a, "b": b}))(ids[row : row + 1])
        for row, (a, b) in enumerate(SHARES)
    ]
    expected = torch.cat(rows)
    torch.testing.assert_close(duo(ids), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(duo(ids, last_only=True), expected[:, -1:], rtol=1e-6, atol=1e-6)
    for reduction in ("mean", "none"):
        wanted = F.cross_entropy(expected.mT, targets, reduction=reduction)
        loss = duo.loss(ids, targets, reduction=reduction)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)


def test_an_expert_of_weight_zero_is_left_out_of_its_row(substrate: Substrate) -> None:
    logits = [torch.zeros(3, 2, 4), torch.ones(3, 2, 4)]
    logits[0][1] = math.nan
    from fastgrow.compose import Tokens

    tokens = Tokens.of(torch.zeros(3, 2, dtype=torch.int64))
    merged = PerRequest(WEIGHTS).merge(("a", "b"), logits, tokens)
    assert merged[:, 0, 0].tolist() == [0.25, 1.0, 0.5]


def test_requests_are_continued_together(substrate: Substrate) -> None:
    duo = make(substrate, PerRequest(WEIGHTS))
    prompts = random_text(substrate, 1)[:, 1:6]
    together = duo.generate(prompts, max_new_tokens=6, temperature=0.0)
    for row, (a, b) in enumerate(SHARES):
        alone = make(substrate, Weighted({"a": a, "b": b}))
        one = alone.generate(prompts[row : row + 1], max_new_tokens=6, temperature=0.0)
        kept = one.shape[1]
        assert together[row, :kept].tolist() == one[0].tolist()


def test_another_batch_is_refused(substrate: Substrate) -> None:
    duo = make(substrate, PerRequest(WEIGHTS))
    with pytest.raises(ArgumentError, match="has weights for 3 rows, got a batch of 2"):
        duo(random_text(substrate, 0, batch=2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "expected the same number of weights for each expert, got {}"),
        ({"a": [1], "b": [1, 2]}, r"expected the same number .* got \{'a': 1, 'b': 2\}"),
        (
            {"a": [1, -1], "b": [1, 2]},
            r"\['a'\]\[1\]: expected a finite number of at least 0, got -1",
        ),
        ({"a": [1, math.nan], "b": [1, 2]}, r"\['a'\]\[1\]: expected a finite number"),
        ({"a": [1, 0], "b": [1, 0]}, "in row 1 every weight is zero"),
    ],
)
def test_bad_weights_are_named(weights: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PerRequest(weights)


def test_names_and_changes(substrate: Substrate) -> None:
    rule = PerRequest(WEIGHTS)
    assert Rule.from_config(rule.to_config()) == rule
    assert rule.renamed("b", "c") == PerRequest({"a": [3, 0, 1], "c": [1, 2, 1]})
    assert rule.without("a") == PerRequest({"b": [1, 2, 1]})
    with pytest.raises(ConfigError, match="weights are given for 'a', 'b', the experts are 'a'"):
        rule.check(("a",))
    with pytest.raises(ConfigError, match="weights for each row"):
        rule.with_weights({"a": 1})
    duo, data = (
        make(substrate, Mean()),
        TextData.from_splits(train=["аб"], validation=[], test=[], substrate=substrate),
    )
    duo.reweight(rule)
    with pytest.raises(ConfigError, match="that is the same for all rows"):
        tune(duo, data, what="weights", tokens=16)

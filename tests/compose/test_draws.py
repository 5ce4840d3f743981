"""Tokens drawn without the merged distribution follow the merged distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compose_models import make_decoder
from torch import Tensor

from fastgrow import ops
from fastgrow.compose import (
    Adapter,
    CallableExpert,
    Ensemble,
    Mean,
    PerRequest,
    Posterior,
    ProbabilityMean,
    Rule,
    TopK,
    Weighted,
)
from fastgrow.compose.draws import is_drawn_from_experts
from fastgrow.errors import ArgumentError
from fastgrow.nn import Decoder
from fastgrow.nn.sampling import Sampler, keep_top_k, keep_top_p
from fastgrow.substrate import Substrate

ROWS = 2000
MIXTURES: list[Rule] = [
    ProbabilityMean(),
    ProbabilityMean({"ru": 0.6, "zh": 0.4, "en": 0}),
    Posterior(temperature=8),
    TopK(2, temperature=8),
]
SUMS: list[Rule] = [
    Mean(),
    Weighted({"ru": 0.8, "zh": -0.3, "en": 0}, normalize=False),
    PerRequest({"ru": [1] * ROWS, "zh": [0] * ROWS, "en": [2] * ROWS}),
    Adapter(3),
]
Cut = Callable[[Tensor], Tensor]


def unchanged(logits: Tensor) -> Tensor:
    return logits


SETTINGS: list[tuple[dict[str, Any], Cut]] = [
    ({}, unchanged),
    ({"temperature": 0.7, "top_k": 6}, lambda z: keep_top_k(z / 0.7, 6)),
    ({"top_p": 0.8}, lambda z: keep_top_p(z, 0.8)),
]


def make(substrate: Substrate, rule: Rule, *, foreign: bool = False) -> Ensemble:
    """Three experts of different size that disagree, none with high confidence."""
    models: dict[str, Any] = {
        "ru": make_decoder(substrate, 1, init_std=0.2),
        "zh": make_decoder(substrate, 2, d_model=16, n_layer=2, init_std=0.3),
        "en": make_decoder(substrate, 3, d_model=48, init_std=0.2),
    }
    for model in models.values():
        with torch.no_grad():
            model.lm_head.weight.div_(30)
    if foreign:
        models["zh"] = CallableExpert(
            models["zh"], vocab_size=len(substrate), max_seq_len=24, vocabulary=substrate
        )
    ensemble = Ensemble(models, rule)
    if ensemble.adapter is not None:
        generator = torch.Generator().manual_seed(0)
        for parameter in ensemble.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return ensemble


def sampler(seed: int = 0, **settings: Any) -> Sampler:
    return Sampler(**settings, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draws(ensemble: Ensemble, prompt: Tensor, *samplers: Sampler) -> list[Tensor]:
    """The next token in ROWS copies of a prompt, drawn by each sampler."""
    ids = prompt.expand(ROWS, -1)
    read = ensemble.new_cache(ROWS)
    ensemble(ids[:, :-1], read, last_only=True)
    drawn = []
    for way in samplers:
        cache = copy.deepcopy(read)
        drawn.append(ensemble.next_tokens(ids[:, -1:], cache, way))
        assert cache.length == ids.shape[1]
        assert all(inner.length == cache.length for inner in cache.caches.values())
    return drawn


def surprise(drawn: Tensor, p: Tensor) -> float:
    """Pearson's χ² in standard deviations above its mean; rare tokens are one class."""
    counts = torch.bincount(drawn, minlength=len(p)).double()
    expected = p.double() * len(drawn)
    common = expected >= 8
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    there = expected > 0
    if counts[~there].sum() > 0:
        return math.inf
    squares = (counts[there] - expected[there]).square() / expected[there]
    freedom = int(there.sum()) - 1
    assert freedom >= 3
    return float((squares.sum() - freedom) / math.sqrt(2 * freedom))


@pytest.fixture(scope="module")
def prompt(substrate: Substrate) -> Tensor:
    return torch.tensor([[substrate.bos_id, *substrate.encode("а文c")]])


@torch.no_grad()
def predicted(ensemble: Ensemble, prompt: Tensor) -> Tensor:
    """The merged logits [V] of the next token."""
    rows = ROWS if isinstance(ensemble.rule, PerRequest) else 1
    merged: Tensor = ensemble(prompt.expand(rows, -1), last_only=True)[0, -1]
    return merged


@pytest.mark.parametrize("foreign", [False, True], ids=["decoders", "foreign"])
@pytest.mark.parametrize("rule", MIXTURES, ids=str)
def test_a_mixture_is_sampled_without_changes(
    rule: Rule, foreign: bool, substrate: Substrate, prompt: Tensor
) -> None:
    ensemble = make(substrate, rule, foreign=foreign)
    p = predicted(ensemble, prompt).exp()
    drawn, again, otherwise = draws(ensemble, prompt, sampler(), sampler(), sampler(seed=1))
    assert surprise(drawn, p) < 4
    # This many draws distinguish the mixture from similar distributions.
    for name, model in ensemble.experts.items():
        assert surprise(drawn, model(prompt)[0, -1].detach().softmax(-1)) > 8, name
    assert surprise(drawn, predicted(make(substrate, Mean()), prompt).softmax(-1)) > 8
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, otherwise)


@pytest.mark.parametrize("rule", SUMS, ids=lambda rule: rule.kind)
def test_a_sum_is_sampled_without_changes(rule: Rule, substrate: Substrate, prompt: Tensor) -> None:
    ensemble = make(substrate, rule, foreign=isinstance(rule, Weighted | PerRequest))
    logits = predicted(ensemble, prompt)
    ways = [sampler(**settings) for settings, _ in SETTINGS]
    *drawn, again, greedy = draws(
        ensemble, prompt, *ways, sampler(**SETTINGS[-1][0]), sampler(temperature=0)
    )
    for tokens, (_, cut) in zip(drawn, SETTINGS, strict=True):
        assert surprise(tokens, cut(logits).softmax(-1)) < 4
        assert surprise(tokens, cut(1.5 * logits).softmax(-1)) > 6
    assert torch.equal(drawn[-1], again)
    assert greedy.tolist() == [int(logits.argmax())] * ROWS


@pytest.mark.parametrize(("settings", "cut"), SETTINGS[1:])
def test_a_mixture_is_formed_where_the_settings_change_it(
    settings: dict[str, Any], cut: Cut, substrate: Substrate, prompt: Tensor
) -> None:
    ensemble = make(substrate, ProbabilityMean())
    assert not is_drawn_from_experts(ensemble.rule, Sampler(**settings))
    (drawn,) = draws(ensemble, prompt, sampler(**settings))
    assert surprise(drawn, cut(predicted(ensemble, prompt)).softmax(-1)) < 4


def test_the_weights_are_those_of_each_text(substrate: Substrate) -> None:
    """One batch with a text that one expert predicts well and a text that the other does."""
    ensemble = make(substrate, Posterior())
    texts = [substrate.encode(text) for text in ("абвгдаб", "hgfedch")]
    ids = torch.tensor([[substrate.bos_id, *text] for text in texts])
    merged = ensemble(ids)[:, -1].detach().exp()
    rows = ids.repeat_interleave(ROWS // 2, dim=0)
    cache = ensemble.new_cache(ROWS)
    with torch.no_grad():
        first, second = ensemble.next_tokens(rows, cache, sampler()).chunk(2)
    assert surprise(first, merged[0]) < 4
    assert surprise(second, merged[1]) < 4
    assert surprise(first, merged[1]) > 8


def test_rows_are_drawn_independently_whichever_expert_is_drawn(substrate: Substrate) -> None:
    """With equal experts and equal rows, tokens coincide only by chance."""
    model = make_decoder(substrate, 1)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
    twins = Ensemble({"a": model, "b": model}, ProbabilityMean())
    ids = torch.full((2, 2), substrate.bos_id)
    way = sampler()
    with torch.no_grad():
        pairs = torch.stack([twins.next_tokens(ids, twins.new_cache(2), way) for _ in range(150)])
    # 150 pairs of tokens out of 28 coincide about five times.
    assert int((pairs[:, 0] == pairs[:, 1]).sum()) < 20


def test_one_head_runs_for_a_token_and_nothing_is_merged(
    substrate: Substrate, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = make(substrate, ProbabilityMean())
    heads: list[str] = []
    for name, model in ensemble.experts.items():
        model.lm_head.register_forward_hook(lambda *_, name=name: heads.append(name))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("was merged")

    monkeypatch.setattr(ops, "logit_mean", refuse)
    monkeypatch.setattr(ops, "probability_mean", refuse)
    ensemble.generate(prompt, max_new_tokens=12, seed=0, stop=())
    assert 1 <= len(heads) <= 12
    assert len(set(heads)) > 1
    ensemble.reweight(Posterior())
    ensemble.generate(prompt, max_new_tokens=3, seed=0)
    ensemble.reweight(Mean())
    ensemble.generate(prompt, max_new_tokens=3, seed=0, top_p=0.9)
    heads.clear()
    ensemble.reweight(Weighted({"ru": 1, "zh": 0, "en": 2}))
    ensemble.generate(prompt, max_new_tokens=1, seed=0)
    assert heads == ["ru", "en"]


def test_an_ensemble_within_an_ensemble(substrate: Substrate, prompt: Tensor) -> None:
    inner = make(substrate, ProbabilityMean())
    outer = Ensemble({"inner": inner, "ru": inner.experts["ru"]}, ProbabilityMean())
    p = predicted(outer, prompt).exp()
    (drawn,) = draws(outer, prompt, sampler())
    assert surprise(drawn, p) < 4


def test_experts_of_two_dtypes(substrate: Substrate, prompt: Tensor) -> None:
    models: dict[str, Decoder] = {
        str(dtype): make_decoder(substrate, 1, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    models = {name.split(".")[1]: model for name, model in models.items()}
    for rule in (Mean(), ProbabilityMean()):
        text = Ensemble(models, rule).generate(prompt, max_new_tokens=5, seed=2)
        assert torch.equal(text, Ensemble(models, rule).generate(prompt, max_new_tokens=5, seed=2))


def test_nan_in_all_experts_is_an_error(substrate: Substrate, prompt: Tensor) -> None:
    for rule, what in (
        (Mean(), "logits"),
        (ProbabilityMean(), "logits"),
        (Posterior(), "experts' weights"),
    ):
        ensemble = make(substrate, rule)
        for model in ensemble.experts.values():
            torch.nn.init.constant_(model.lm_head.weight, math.nan)
        expected = f"row 0.* {what}"
        with pytest.raises(ArgumentError, match=expected):
            ensemble.generate(prompt, max_new_tokens=2)

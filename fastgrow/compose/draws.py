"""Sampling the next token of an ensemble without computing the merged prediction.

A weighted sum of logits is sampled from without storing the sum. A mixture of probabilities is
sampled from by drawing one expert by its weight and then the token from that expert. If
temperature, `top_k` or `top_p` change the distribution, the mixture is computed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.compose.adapter import LowRank
from fastgrow.compose.cache import EnsembleCache
from fastgrow.compose.mixing import in_one_dtype
from fastgrow.compose.predictions import ALL_ROWS, Prediction, predict, predict_last
from fastgrow.compose.rules import LogitRule, ProbabilityRule, Rule, Tokens
from fastgrow.errors import ArgumentError
from fastgrow.nn.sampling import Sampler


def is_drawn_from_experts(rule: Rule, sampler: Sampler) -> bool:
    """Whether a token can be drawn without computing the merged prediction."""
    mixture = isinstance(rule, ProbabilityRule) and sampler.changes_nothing
    return mixture or isinstance(rule, LogitRule)


def draw_from_experts(
    rule: Rule,
    experts: Sequence[tuple[str, Any]],
    tokens: Tokens,
    cache: EnsembleCache,
    sampler: Sampler,
    adapter: LowRank | None = None,
) -> Tensor:
    """Draw one token for each row, [B] int64; requires `is_drawn_from_experts`.

    Args:
        rule: how predictions are merged.
        experts: names and models.
        tokens: the new tokens, [B, T].
        cache: cache of the ensemble; the new tokens are added to the experts' caches and the
            state of the rule is updated.
        sampler: how to draw.
        adapter: the parameters of the rule `Adapter`.

    Raises:
        ArgumentError: the weights of a row are NaN.
    """
    if isinstance(rule, LogitRule):
        return _from_sum(rule, experts, tokens.ids, cache, sampler, adapter)
    assert isinstance(rule, ProbabilityRule)
    log_weights, predictions = predict_last(rule, experts, tokens, cache.caches, cache.state)
    weights = log_weights.exp().expand(len(tokens.ids), -1)
    return _from_mixture(predictions, weights, sampler)


def _from_sum(
    rule: LogitRule,
    experts: Sequence[tuple[str, Any]],
    ids: Tensor,
    cache: EnsembleCache,
    sampler: Sampler,
    adapter: LowRank | None,
) -> Tensor:
    mix = rule.mix([name for name, _ in experts], ids[:, -1:])
    if adapter is not None:
        assert not isinstance(mix, Tensor)
        hidden = [model.hidden(ids, cache.caches[name])[:, -1] for name, model in experts]
        logits = [model.lm_head(h) for h, (_, model) in zip(hidden, experts, strict=True)]
        return sampler.of_sum([*logits, adapter(hidden)], [*mix, 1.0])
    predictions = [predict(model, ids, cache.caches[name]) for name, model in experts]
    if isinstance(mix, Tensor):
        return sampler.of_sum(in_one_dtype([z(ALL_ROWS) for z in predictions]), mix[:, -1])
    used = [(z(ALL_ROWS), c) for z, c in zip(predictions, mix, strict=True) if c != 0]
    return sampler.of_sum(in_one_dtype([z for z, _ in used]), [c for _, c in used])


def _from_mixture(predictions: Sequence[Prediction], weights: Tensor, sampler: Sampler) -> Tensor:
    """Draw k ~ weights [B, K] in each row, then a token from expert k."""
    nan_rows = weights.isnan().any(-1).nonzero()
    if len(nan_rows):
        raise ArgumentError(
            f"generate: cannot draw a token in row {int(nan_rows[0])}: its experts' weights are "
            "NaN, for example because an expert's logits for the text contain NaN"
        )
    chosen = torch.multinomial(weights, 1, generator=sampler.generator).squeeze(-1)
    drawn = torch.empty_like(chosen)
    for k in chosen.unique().tolist():
        rows = (chosen == k).nonzero().squeeze(-1)
        drawn[rows] = sampler.of_sum([predictions[k](rows)], [1.0])
    return drawn

"""The next token of an ensemble, from no more of its experts than rule and settings need.

A sum of logits is drawn from without the sum in memory. A mixture of probabilities is drawn from by
drawing one expert by the weights, and the token from that expert alone; where temperature, `top_k`
or `top_p` change the distribution, the mixture has to be formed first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.compose.adapter import LowRank
from fastgrow.compose.cache import EnsembleCache
from fastgrow.compose.mixing import in_one_dtype
from fastgrow.compose.rules import LogitRule, ProbabilityRule, Rule, Tokens
from fastgrow.nn import Decoder
from fastgrow.nn.sampling import Sampler

# An expert's logits of the next token in some rows [N], made when they are asked for: [N, V].
Prediction = Callable[[Tensor | slice], Tensor]

_ALL = slice(None)


def is_drawn_from_experts(rule: Rule, sampler: Sampler) -> bool:
    """Whether the merged prediction need not be formed."""
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
    """One token for each row, [B] int64, where `is_drawn_from_experts`.

    Args:
        rule: how predictions are merged.
        experts: names and models; they read the tokens into their caches.
        tokens: what is read, [B, T].
        cache: of the experts; the rule's memory in it is brought up to date.
        sampler: how to draw.
        adapter: the parameters of the rule `Adapter`.
    """
    if isinstance(rule, LogitRule):
        return _from_sum(rule, experts, tokens.ids, cache, sampler, adapter)
    assert isinstance(rule, ProbabilityRule)
    names, ids = [name for name, _ in experts], tokens.ids
    if rule.reads_text:
        logits = [model(ids, cache.caches[name]) for name, model in experts]
        log_weights = rule.weigh(names, logits, tokens, cache.state)
        predictions = [_rows_of(z[:, -1]) for z in logits]
    else:
        log_weights = rule.log_weights(names, tokens)
        predictions = [_read(model, ids, cache.caches[name]) for name, model in experts]
    weights = (log_weights if log_weights.dim() == 1 else log_weights[:, -1]).exp()
    return _from_mixture(predictions, weights.expand(len(ids), -1), sampler)


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
    predictions = [_read(model, ids, cache.caches[name]) for name, model in experts]
    if isinstance(mix, Tensor):
        return sampler.of_sum(in_one_dtype([z(_ALL) for z in predictions]), mix[:, -1])
    voices = [(z(_ALL), c) for z, c in zip(predictions, mix, strict=True) if c != 0]
    return sampler.of_sum(in_one_dtype([z for z, _ in voices]), [c for _, c in voices])


def _from_mixture(predictions: Sequence[Prediction], weights: Tensor, sampler: Sampler) -> Tensor:
    """Draw k ~ weights [B, K] in each row, then a token from expert k."""
    chosen = torch.multinomial(weights, 1, generator=sampler.generator).squeeze(-1)
    drawn = torch.empty_like(chosen)
    for k in chosen.unique().tolist():
        rows = (chosen == k).nonzero().squeeze(-1)
        drawn[rows] = sampler.of_sum([predictions[k](rows)], [1.0])
    return drawn


def _read(model: Any, ids: Tensor, cache: Any) -> Prediction:
    """Let an expert read; a decoder's head waits until its logits are asked for."""
    if type(model) is not Decoder:
        return _rows_of(model(ids, cache, last_only=True)[:, -1])
    hidden = model.hidden(ids, cache)[:, -1]
    return lambda rows: model.lm_head(hidden[rows])


def _rows_of(logits: Tensor) -> Prediction:
    return lambda rows: logits[rows]

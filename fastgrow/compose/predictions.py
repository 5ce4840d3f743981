"""The prediction of an ensemble, computed from no more logits than the rule needs.

For a prompt, decoders compute the logits of the last position only. If the weights of the rule
depend on the text, the log-probabilities of its tokens are computed like a loss, without logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow import ops
from fastgrow.compose.adapter import LowRank
from fastgrow.compose.losses import have_plain_heads
from fastgrow.compose.mixing import in_one_dtype, scores_within
from fastgrow.compose.rules import ProbabilityRule, Rule, RuleState, Tokens
from fastgrow.nn import Decoder

# A function that computes an expert's logits of the next token, [N, V], in the given rows [N].
Prediction = Callable[[Tensor | slice], Tensor]

ALL_ROWS = slice(None)


def ensemble_prediction(
    rule: Rule,
    experts: Sequence[tuple[str, Any]],
    tokens: Tokens,
    caches: Mapping[str, Any],
    state: RuleState | None,
    *,
    last_only: bool,
    adapter: LowRank | None = None,
) -> Tensor:
    """Compute the merged prediction at each position, [B, T, V], or at the last one, [B, 1, V].

    Args:
        rule: how predictions are merged.
        experts: names and models.
        tokens: the new tokens, [B, T].
        caches: cache of each expert, or None, by name.
        state: state of the rule, updated in place; None if the tokens are the whole text.
        last_only: return the last position only.
        adapter: the parameters of the rule `Adapter`.
    """
    names, ids = [name for name, _ in experts], tokens.ids
    if last_only and isinstance(rule, ProbabilityRule):
        log_weights, predictions = predict_last(rule, experts, tokens, caches, state)
        last = in_one_dtype([prediction(ALL_ROWS) for prediction in predictions])
        return ops.probability_mean(last, log_weights=log_weights)[:, None]
    if adapter is None:
        # A rule whose weights depend on the text needs the logits of all positions.
        last_logits = last_only and not rule.reads_text
        logits = [model(ids, caches[name], last_only=last_logits) for name, model in experts]
        return rule.merge(names, logits, tokens, state, last_only=last_only)
    hidden = [model.hidden(ids, caches[name]) for name, model in experts]
    hidden = [h[:, -1:] for h in hidden] if last_only else hidden
    logits = [model.lm_head(h) for (_, model), h in zip(experts, hidden, strict=True)]
    merged = rule.merge(names, logits, tokens, state, last_only=last_only)
    return merged + adapter(hidden)


def predict_last(
    rule: ProbabilityRule,
    experts: Sequence[tuple[str, Any]],
    tokens: Tokens,
    caches: Mapping[str, Any],
    state: RuleState | None = None,
) -> tuple[Tensor, list[Prediction]]:
    """Run the experts, and compute their weights and predictions for the next token only.

    Returns:
        log w_k, [K] or [B, K], and each expert's prediction.
    """
    names, ids = [name for name, _ in experts], tokens.ids
    if not rule.reads_text:
        log_weights = rule.log_weights(names, tokens)
        predictions = [predict(model, ids, caches[name]) for name, model in experts]
        return log_weights if log_weights.dim() == 1 else log_weights[:, -1], predictions
    texts = [_score_text(model, ids, caches[name]) for name, model in experts]
    following, last = torch.stack([f for f, _ in texts], dim=-1), [z for _, z in texts]
    log_weights = rule.weigh_text(names, tokens, following, last, state)
    return log_weights[:, -1], [_rows_of(z) for z in last]


def predict(model: Any, ids: Tensor, cache: Any) -> Prediction:
    """Run an expert; the head of a decoder is applied only when the prediction is called."""
    if type(model) is not Decoder:
        return _rows_of(model(ids, cache, last_only=True)[:, -1])
    hidden = model.hidden(ids, cache)[:, -1]
    return lambda rows: model.lm_head(hidden[rows])


def _score_text(model: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
    """Return log p of each token but the first, [B, T − 1], and the next token's logits [B, V]."""
    if not have_plain_heads([model]):
        logits = model(ids, cache)
        return scores_within(logits, ids), logits[:, -1]
    hidden = model.hidden(ids, cache)
    nats = model.lm_head.loss(hidden[:, :-1], ids[:, 1:], reduction="none")
    return -nats, model.lm_head(hidden[:, -1])


def _rows_of(logits: Tensor) -> Prediction:
    return lambda rows: logits[rows]

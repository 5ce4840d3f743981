"""What an ensemble predicts, from no more of its experts than the rule needs.

Of a prompt, decoders make the logits of the last position alone, even for a rule that reads the
text: what each gave to the tokens of the text is summed up as a loss is.
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

# An expert's logits of the next token in some rows [N], made when they are asked for: [N, V].
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
    """The merged prediction after each token [B, T, V], or after the last one [B, 1, V].

    Args:
        rule: how predictions are merged.
        experts: names and models.
        tokens: what is read, [B, T].
        caches: each expert's, or None, by name.
        state: the rule's memory, brought up to date; None if the tokens are the whole text.
        last_only: give the last position alone.
        adapter: the parameters of the rule `Adapter`.
    """
    names, ids = [name for name, _ in experts], tokens.ids
    if last_only and isinstance(rule, ProbabilityRule):
        log_weights, predictions = read_last(rule, experts, tokens, caches, state)
        last = in_one_dtype([prediction(ALL_ROWS) for prediction in predictions])
        return ops.probability_mean(last, log_weights=log_weights)[:, None]
    if adapter is None:
        # What the experts made of the whole text matters to a rule that reads it.
        last_logits = last_only and not rule.reads_text
        logits = [model(ids, caches[name], last_only=last_logits) for name, model in experts]
        return rule.merge(names, logits, tokens, state, last_only=last_only)
    hidden = [model.hidden(ids, caches[name]) for name, model in experts]
    hidden = [h[:, -1:] for h in hidden] if last_only else hidden
    logits = [model.lm_head(h) for (_, model), h in zip(experts, hidden, strict=True)]
    merged = rule.merge(names, logits, tokens, state, last_only=last_only)
    return merged + adapter(hidden)


def read_last(
    rule: ProbabilityRule,
    experts: Sequence[tuple[str, Any]],
    tokens: Tokens,
    caches: Mapping[str, Any],
    state: RuleState | None = None,
) -> tuple[Tensor, list[Prediction]]:
    """Let the experts read, and weigh what they say of the next token alone.

    Returns:
        log w_k, [K] or [B, K], and each expert's prediction.
    """
    names, ids = [name for name, _ in experts], tokens.ids
    if not rule.reads_text:
        log_weights = rule.log_weights(names, tokens)
        predictions = [read(model, ids, caches[name]) for name, model in experts]
        return log_weights if log_weights.dim() == 1 else log_weights[:, -1], predictions
    texts = [_read_text(model, ids, caches[name]) for name, model in experts]
    following, last = torch.stack([f for f, _ in texts], dim=-1), [z for _, z in texts]
    log_weights = rule.weigh_text(names, tokens, following, last, state)
    return log_weights[:, -1], [_rows_of(z) for z in last]


def read(model: Any, ids: Tensor, cache: Any) -> Prediction:
    """Let an expert read; a decoder's head waits until its logits are asked for."""
    if type(model) is not Decoder:
        return _rows_of(model(ids, cache, last_only=True)[:, -1])
    hidden = model.hidden(ids, cache)[:, -1]
    return lambda rows: model.lm_head(hidden[rows])


def _read_text(model: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
    """Scores of the text within itself [B, T − 1], and the logits of the next token [B, V]."""
    if not have_plain_heads([model]):
        logits = model(ids, cache)
        return scores_within(logits, ids), logits[:, -1]
    hidden = model.hidden(ids, cache)
    nats = model.lm_head.loss(hidden[:, :-1], ids[:, 1:], reduction="none")
    return -nats, model.lm_head(hidden[:, -1])


def _rows_of(logits: Tensor) -> Prediction:
    return lambda rows: logits[rows]

"""Cross-entropy of an ensemble, from no more of its experts than the rule needs.

A rule over logits needs one product of concatenated hidden states and heads where the experts are
decoders, and their logits otherwise. A rule over probabilities needs the log-probability that each
expert gave to the targets, and, if it reads the text, to the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow import ops
from fastgrow.compose.adapter import LowRank
from fastgrow.compose.mixing import in_one_dtype
from fastgrow.compose.rules import LogitRule, ProbabilityRule, Rule, Tokens
from fastgrow.errors import ArgumentError
from fastgrow.nn import Decoder, LMHead
from fastgrow.ops.heads import reduced

_NO_TARGET = -100


def ensemble_loss(
    rule: Rule,
    experts: Sequence[tuple[str, Any]],
    tokens: Tokens,
    targets: Tensor,
    *,
    ignore_index: int,
    reduction: str,
    adapter: LowRank | None = None,
) -> Tensor:
    """Cross-entropy in nats of targets [B, T] under the merged prediction after each token.

    Args:
        rule: how predictions are merged.
        experts: names and models.
        adapter: the parameters of the rule `Adapter`.
        tokens: what is read, [B, T].
        targets: [B, T] int64.
        ignore_index: targets of this value count nothing.
        reduction: `mean` over the targets that count, `sum`, or `none` for [B, T].

    Raises:
        ArgumentError: an unknown reduction, or targets of another shape than the ids.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"loss: reduction must be mean, sum or none, got {reduction!r}")
    if targets.shape != tokens.ids.shape:
        raise ArgumentError(
            f"loss: targets must be of shape {list(tokens.ids.shape)} like the ids, "
            f"got {list(targets.shape)}"
        )
    targets = targets.masked_fill(targets == ignore_index, _NO_TARGET)
    if isinstance(rule, LogitRule):
        return _logit_loss(rule, experts, tokens.ids, targets, reduction, adapter)
    if isinstance(rule, ProbabilityRule):
        nats = _mixture_nats(rule, experts, tokens, targets)
        nats = nats.masked_fill(targets == _NO_TARGET, 0.0)
        return reduced(nats, targets, _NO_TARGET, reduction)
    logits = rule.merge(
        [n for n, _ in experts], [model(tokens.ids) for _, model in experts], tokens
    )
    return ops.mean_cross_entropy([logits], targets, ignore_index=_NO_TARGET, reduction=reduction)


def _logit_loss(
    rule: LogitRule,
    experts: Sequence[tuple[str, Any]],
    ids: Tensor,
    targets: Tensor,
    reduction: str,
    adapter: LowRank | None,
) -> Tensor:
    mix = rule.mix([name for name, _ in experts], ids)
    models = [model for _, model in experts]
    if not isinstance(mix, Tensor) and adapter is None:
        # Nothing is remembered here, so an expert that has no say need not even run.
        voices = [(model, c) for model, c in zip(models, mix, strict=True) if c != 0]
        models, mix = [model for model, _ in voices], [c for _, c in voices]
    if have_plain_heads(models):
        return _fused_heads_loss(models, mix, ids, targets, reduction, adapter)
    return ops.mean_cross_entropy(
        in_one_dtype([model(ids) for model in models]),
        targets,
        mix,
        ignore_index=_NO_TARGET,
        reduction=reduction,
    )


def have_plain_heads(models: Sequence[Any]) -> bool:
    """Whether all logits are one linear layer away from hidden states, in one dtype."""
    return (
        all(type(m) is Decoder and type(m.lm_head) is LMHead for m in models)
        and len({m.lm_head.weight.dtype for m in models}) == 1
    )


def _fused_heads_loss(
    models: Sequence[Decoder],
    mix: list[float] | Tensor,
    ids: Tensor,
    targets: Tensor,
    reduction: str,
    adapter: LowRank | None,
) -> Tensor:
    """Σ_k c_k · (h_k · W_kᵀ + b_k), formed inside the loss; an adapter is one more head."""
    hidden = [model.hidden(ids, in_float32=True) for model in models]
    weights = [model.lm_head.weight for model in models]
    biases: list[Tensor | None] = [model.lm_head.bias for model in models]
    if adapter is not None:
        assert not isinstance(mix, Tensor)
        hidden.append(adapter.features(hidden))
        weights.append(adapter.up.weight)
        biases.append(None)
        mix = [*mix, 1.0]
    return ops.linear_cross_entropy(
        hidden, weights, targets, biases, mix=mix, ignore_index=_NO_TARGET, reduction=reduction
    )


def _mixture_nats(
    rule: ProbabilityRule, experts: Sequence[tuple[str, Any]], tokens: Tokens, targets: Tensor
) -> Tensor:
    """−log Σ_k w_k · p_k(target), [B, T]; meaningless where there is no target."""
    names = [name for name, _ in experts]
    if not rule.reads_text:
        log_weights = rule.log_weights(names, tokens)
        has_a_say = ~log_weights.isneginf().reshape(-1, len(experts)).all(0)
        voices = has_a_say.nonzero().flatten().tolist()
        target_scores = _scores([experts[k] for k in voices], tokens.ids, targets)
        return _mixed(log_weights[..., voices], target_scores)
    # The token after the next is scored as a target and as text: once, if they are the same.
    following = torch.cat([tokens.ids[:, 1:], targets[:, -1:]], dim=1)
    following_scores = _scores(experts, tokens.ids, following)
    if bool(((targets == following) | (targets == _NO_TARGET)).all()):
        target_scores = following_scores
    else:
        target_scores = _scores(experts, tokens.ids, targets)
    first = torch.zeros_like(following_scores[:, :1])
    text_scores = torch.cat([first, following_scores[:, :-1]], dim=1)
    return _mixed(rule.log_weights(names, tokens, text_scores), target_scores)


def _mixed(log_weights: Tensor, scores: Tensor) -> Tensor:
    """By autograd, each expert's cross-entropy gets its share in the target as its row's weight."""
    terms = (log_weights.to(scores.dtype) + scores).masked_fill(log_weights.isneginf(), -math.inf)
    return -terms.logsumexp(-1)


def _scores(experts: Sequence[tuple[str, Any]], ids: Tensor, targets: Tensor) -> Tensor:
    """log p_k(target) of each expert, [B, T, K]."""
    return torch.stack(
        [
            -model.loss(ids, targets, ignore_index=_NO_TARGET, reduction="none")
            for _, model in experts
        ],
        dim=-1,
    )

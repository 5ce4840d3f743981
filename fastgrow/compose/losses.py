"""Cross-entropy of an ensemble, computed without the experts' logits where possible.

Under a rule over logits, if the experts are decoders, the merged logits are one matrix product of
the concatenated hidden states and heads, which is fused with the loss; otherwise each expert's
logits are computed. A rule over probabilities needs each expert's log-probability of the targets
and, if its weights depend on the text, of the text.
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
    """Compute the cross-entropy in nats of targets [B, T] under the merged prediction.

    Args:
        rule: how predictions are merged.
        experts: names and models.
        adapter: the parameters of the rule `Adapter`.
        tokens: the input tokens, [B, T].
        targets: [B, T] int64.
        ignore_index: targets of this value are ignored.
        reduction: `mean` over the targets that are not ignored, `sum`, or `none` for [B, T].

    Raises:
        ArgumentError: the reduction is unknown, or the targets and ids differ in shape.
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
        # There is no cache to fill here, so experts with coefficient zero need not run.
        used = [(model, c) for model, c in zip(models, mix, strict=True) if c != 0]
        models, mix = [model for model, _ in used], [c for _, c in used]
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
    """Whether all models are decoders with a linear head, all of one dtype."""
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
    """Compute the loss of the logits Σ_k c_k · (h_k · W_kᵀ + b_k); an adapter is one more head."""
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
    """Return −log Σ_k w_k · p_k(target), [B, T]; undefined where the target is ignored."""
    names = [name for name, _ in experts]
    if not rule.reads_text:
        log_weights = rule.log_weights(names, tokens)
        has_weight = ~log_weights.isneginf().reshape(-1, len(experts)).all(0)
        used = has_weight.nonzero().flatten().tolist()
        target_scores = _scores([experts[k] for k in used], tokens.ids, targets)
        return _mixed(log_weights[..., used], target_scores)
    # The weights depend on the log-probabilities of the text, the loss on those of the targets. If
    # the targets are the next tokens of the text, they are computed only once.
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
    """Return −log Σ_k w_k · p_k(target).

    Its gradient with respect to an expert's score is minus the expert's share of the probability.
    """
    terms = (log_weights.to(scores.dtype) + scores).masked_fill(log_weights.isneginf(), -math.inf)
    return -terms.logsumexp(-1)


def _scores(experts: Sequence[tuple[str, Any]], ids: Tensor, targets: Tensor) -> Tensor:
    """Return log p_k(target) of each expert, [B, T, K]."""
    return torch.stack(
        [
            -model.loss(ids, targets, ignore_index=_NO_TARGET, reduction="none")
            for _, model in experts
        ],
        dim=-1,
    )

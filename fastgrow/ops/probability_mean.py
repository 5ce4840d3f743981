"""Weighted mean of K experts' probabilities, by way of each expert's log-sum-exp.

    log p_k = logits[k] / temperatures[k] − logsumexp(logits[k] / temperatures[k])
    p       = sum_k  weights[k] · p_k

This is the arithmetic mean of the distributions: it speaks for a token that one expert is sure of.
The mean of logits (`logit_mean`) is, after its softmax, their geometric mean, which takes a token
that one expert rules out for impossible. Everything stays in the space of logarithms. Weights need
not sum to one, and then p does not either; where negative weights make it negative, its logarithm
is NaN. A zero in weights given for every row takes the expert out of the row.

Weights that follow from evidence span more powers of ten than a float has; `log_weights` are added
to log p_k before anything is exponentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops._experts import (
    Numbers,
    averaged,
    check_logits,
    check_targets,
    check_vocabulary,
    example_logits,
    numbers,
    row_factors,
    verify_native,
    verify_native_constant,
    weights_of,
)
from fastgrow.ops._log_probability import log_probability
from fastgrow.ops.core.checks import check_range, out_of_range
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.legacy import Operation
from fastgrow.ops.mean_cross_entropy import check_reduction, reduced


def probability_mean(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    log_weights: Tensor | None = None,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """Logarithm of the weighted mean of the experts' probabilities.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert, where zero takes the expert out of the row.
        log_weights: instead of the weights, their logarithms, [K] or [..., K]; −inf takes the
            expert out.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        Log-probabilities [..., V], float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    name = "probability_mean"
    check_logits(name, logits)
    check_vocabulary(name, logits)
    log_weight = None
    if log_weights is not None:
        if weights is not None:
            raise argument_error(name, "log_weights", "None beside weights", "both")
        log_weight = numbers(name, "log_weights", log_weights, logits)
        # By row, so that −inf takes an expert out of its logits as well.
        log_weight = log_weight.expand(*logits[0].shape[:-1], len(logits))
        weights = (~log_weight.isneginf()).to(log_weight.dtype)
    scale, weight = _parameters(name, logits, weights, temperatures)
    return MEAN(logits, scale, weight, log_weight, impl=impl)


def probability_mean_gather(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """Log-probability of each target under the mean of the experts' probabilities.

    Natively one pass over the logits, and one for the gradients, which are those of K
    cross-entropies with the experts' responsibilities for the target as weights of the rows.

    Args:
        logits, weights, temperatures, impl: as for `probability_mean`.
        targets: [...] int64 or int32, each in [0, V).

    Returns:
        [...] in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position. On a CPU,
            and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
    """
    name = "probability_mean_gather"
    return _gather(name, logits, targets, weights, temperatures, None, impl)


def probability_mean_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of the targets under the mean of the experts' probabilities, in nats.

    Args:
        logits, weights, temperatures, impl: as for `probability_mean`.
        targets: [...] int64 or int32, each in [0, V) or `ignore_index`.
        ignore_index: targets of this value count nothing and get no gradient.
        reduction: `mean` (NaN if every target is ignored, as torch has it), `sum` or `none`.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position. On a CPU,
            and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
    """
    name = "probability_mean_cross_entropy"
    check_reduction(name, reduction)
    gathered = _gather(name, logits, targets, weights, temperatures, ignore_index, impl)
    losses = torch.where(targets == ignore_index, 0, -gathered)
    return reduced(losses, targets, ignore_index, reduction)


def _gather(
    name: str,
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None,
    temperatures: Numbers | None,
    ignore_index: int | None,
    impl: str | None,
) -> Tensor:
    logits = list(logits)
    check_logits(name, logits)
    check_vocabulary(name, logits)
    check_targets(name, logits, targets)
    vocabulary = logits[0].shape[-1]
    check_range(name, "targets", targets, 0, vocabulary, ignore=ignore_index)
    scale, weight = _parameters(name, logits, weights, temperatures)
    arguments = (logits, scale, weight, targets, ignore_index)
    if torch.compiler.is_compiling():
        return GATHER(*arguments, impl=impl)
    try:
        return GATHER(*arguments, impl=impl)
    except IndexError:
        raise out_of_range(name, "targets", targets, vocabulary, ignore_index) from None


def _parameters(
    name: str, logits: list[Tensor], weights: Numbers | None, temperatures: Numbers | None
) -> tuple[Tensor, Tensor]:
    """Each expert's factor on its logits and its weight, [K] or [..., K] each."""
    weight = weights_of(name, logits, weights)
    ones = [1.0] * len(logits) if temperatures is None else temperatures
    scale = 1 / numbers(name, "temperatures", ones, logits)
    if weight.dim() > 1:
        # Factors of zero in turn take the expert's logits out of the row.
        scale = scale.expand(weight.shape).masked_fill(weight == 0, 0)
    return scale, weight


def log_of_sum(log_terms: Sequence[Tensor], weight: Tensor) -> Tensor:
    """log Σ_k weight[k] · exp(log_terms[k]) for K tensors, with weights [..., K] that fit them."""
    top = log_terms[0].detach()
    for term in log_terms[1:]:
        top = torch.maximum(top, term.detach())
    # Where every term is −inf, a difference would be NaN.
    top = top.clamp(min=torch.finfo(top.dtype).min)
    total = weight[..., 0] * (log_terms[0] - top).exp()
    for k, term in enumerate(log_terms[1:], start=1):
        total = total + weight[..., k] * (term - top).exp()
    return total.log() + top


def _masked(log_probability: Tensor, weight: Tensor, k: int) -> Tensor:
    """Nothing where an expert takes no part; a weight common to all rows follows the formula."""
    if weight.dim() == 1:
        return log_probability
    absent = weight[..., k] == 0
    if log_probability.dim() == weight.dim():
        absent = absent[..., None]
    return log_probability.masked_fill(absent, float("-inf"))


def _mean_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    logits, weight = example_logits(device)
    return (logits, weight, weight, None), {}


def _gather_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    logits, weight = example_logits(device)
    return (logits, weight, weight, torch.zeros(1, dtype=torch.int64, device=device), None), {}


MEAN = Operation("probability_mean", example=_mean_example)
GATHER = Operation("probability_mean_gather", example=_gather_example)


@MEAN.implementation("eager")
def mean_eager(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Tensor:
    """The formula; every expert's log-probabilities are in memory."""
    parts = []
    for k, x in enumerate(logits):
        log_p = averaged([x], scale[..., k, None]).log_softmax(-1)
        if log_weight is not None:
            log_p = log_p + log_weight[..., k, None]
        parts.append(_masked(log_p, weight, k))
    return log_of_sum(parts, weight if weight.dim() == 1 else weight[..., None, :])


def _verify_mean(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Answer:
    parameters = (scale, weight) if log_weight is None else (scale, weight, log_weight)
    return verify_native_constant(logits, *parameters)


@MEAN.implementation("native", verify=_verify_mean)
def mean_native(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Tensor:
    """Two passes over the logits (csrc/cpu/probability_mean.cpp)."""
    return torch.ops.fastgrow.probability_mean(logits, scale, weight, log_weight)


@GATHER.implementation("eager")
def gather_eager(
    logits: list[Tensor], scale: Tensor, weight: Tensor, targets: Tensor, ignore_index: int | None
) -> Tensor:
    """The formula; an expert's log-probabilities are in memory."""
    index = targets.long()
    if ignore_index is not None:
        index = index.masked_fill(index == ignore_index, 0)
    if not torch.compiler.is_compiling() and index.device.type == "cpu":
        _refuse_outside(index, logits[0].shape[-1])
    parts = [
        averaged([x], scale[..., k, None]).log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)
        for k, x in enumerate(logits)
    ]
    return log_of_sum([_masked(part, weight, k) for k, part in enumerate(parts)], weight)


def _refuse_outside(index: Tensor, vocabulary: int) -> None:
    if bool(((index < 0) | (index >= vocabulary)).any()):
        raise IndexError("target out of range")


def _verify_gather(
    logits: list[Tensor], scale: Tensor, weight: Tensor, targets: Tensor, ignore_index: int | None
) -> Answer:
    return verify_native(logits)


@GATHER.implementation("native", verify=_verify_gather)
def gather_native(
    logits: list[Tensor], scale: Tensor, weight: Tensor, targets: Tensor, ignore_index: int | None
) -> Tensor:
    """One pass over each expert's logits (csrc/cpu/log_probability.cpp)."""
    name = GATHER.name
    parts = [
        log_probability(name, [x], scale[..., k : k + 1], targets, ignore_index)
        for k, x in enumerate(logits)
    ]
    return log_of_sum([_masked(part, weight, k) for k, part in enumerate(parts)], weight)


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "probability_mean(Tensor[] logits, Tensor scale, Tensor weight, Tensor? log_weight) -> Tensor"
)


@torch.library.register_fake("fastgrow::probability_mean", lib=_library)
def _log_probabilities(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Tensor:
    return weight.new_empty(logits[0].shape)


def _mean_cpu(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Tensor:
    log_sums = torch.stack(
        [
            torch.ops.fastgrow.mean_log_sum_exp([x], scale[..., k : k + 1].contiguous())
            for k, x in enumerate(logits)
        ],
        dim=-1,
    )
    offsets = (weight.abs().log() if log_weight is None else log_weight) - log_sums
    signs = weight.sign().expand(offsets.shape).contiguous()
    out = _log_probabilities(logits, scale, weight, log_weight)
    torch.ops.fastgrow_native.probability_mean_out(
        logits, row_factors(scale), offsets.contiguous(), signs, out
    )
    return out


_library.impl("probability_mean", _mean_cpu, "CPU")

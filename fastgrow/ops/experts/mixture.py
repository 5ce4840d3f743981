"""Weighted mean of K experts' probabilities.

    log p_k = logits[k] / temperatures[k] − logsumexp(logits[k] / temperatures[k])
    p       = sum_k  weights[k] · p_k

This is the arithmetic mean of the distributions: a token that one expert is sure of has a high
probability. The mean of logits (`logit_mean`) is, after its softmax, their geometric mean, in which
a token has a probability of zero if one expert excludes it. All computations are in the log domain.
Weights need not sum to one, and then p does not either; if negative weights make p negative, its
logarithm is NaN. A weight of zero excludes the expert, even if its logits are NaN or infinite.

Weights such as posterior probabilities can be outside the range of a float; `log_weights` are added
to log p_k before anything is exponentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.extension import on_gpu, run_extension
from fastgrow.ops.core.registration import operator
from fastgrow.ops.experts.losses import (
    MASS_BYTES,
    NO_TARGET,
    LossCall,
    eager_gather,
    log_sum_exp,
    native_gather,
    of_targets,
)
from fastgrow.ops.experts.mean import (
    MeanCall,
    Numbers,
    averaged,
    can_serve,
    check_logits,
    example_call,
    factors,
    numbers,
    pays,
    without_zero,
)
from fastgrow.ops.heads.heads import check_reduction, reduced


class MixtureCall(NamedTuple):
    """A call of `probability_mean`, or of `probability_mean_gather`.

    Args:
        operation: name of the operation, for errors.
        mean: the logits, with factors 1 / temperatures, or zero where the weight is zero, so that
            these logits are not read.
        weight: [K] or [..., K].
        log_weight: added to the logarithms of the weights, [K] or [..., K].
        targets: [...], for `probability_mean_gather`.
        ignore_index: the result for a target of this value is undefined.
    """

    operation: str
    mean: MeanCall
    weight: Tensor
    log_weight: Tensor | None = None
    targets: Tensor | None = None
    ignore_index: int = NO_TARGET

    def experts(self) -> list[MeanCall]:
        """Return one call for each expert."""
        logits, scale, all_present = self.mean
        return [
            MeanCall([x], factor, all_present)
            for x, factor in zip(logits, factors(scale), strict=True)
        ]


def probability_mean(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    log_weights: Tensor | None = None,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """Return the logarithm of the weighted mean of the experts' probabilities.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert; tensors may require a gradient. Default: 1/K each. A weight of zero excludes the
            expert, even if its logits are NaN or infinite; the gradients of that weight and of
            these logits are zero.
        log_weights: logarithms of the weights instead of `weights`, [K] or [..., K]; −inf excludes
            the expert.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        Log-probabilities [..., V], float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position.
    """
    return _MEAN(_mixture("probability_mean", logits, weights, temperatures, log_weights), impl)


def probability_mean_gather(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """Return the log-probability of each target under the mean of the experts' probabilities.

    The `native` implementation takes one pass over the logits, and one for the gradients. These are
    the gradients of K cross-entropies whose rows are weighted by the experts' responsibilities for
    the target.

    Args:
        logits, weights, temperatures, impl: as for `probability_mean`.
        targets: [...] int64 or int32, each in [0, V).

    Returns:
        [...] in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position. A target out of range raises on a CPU, and on other devices only
            under FASTGROW_DEBUG=1.
    """
    call = _mixture("probability_mean_gather", logits, weights, temperatures)
    return of_targets(_GATHER, call._replace(targets=targets), impl)


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
    """Return the cross-entropy of the targets under the mean of the probabilities, in nats.

    Args:
        logits, weights, temperatures, impl: as for `probability_mean`.
        targets: [...] int64 or int32, each in [0, V) or `ignore_index`.
        ignore_index: targets of this value do not contribute to the loss or the gradients.
        reduction: `mean` (NaN if every target is ignored, as in torch), `sum` or `none`.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position. A target out of range raises on a CPU, and on other devices only
            under FASTGROW_DEBUG=1.
    """
    name = "probability_mean_cross_entropy"
    check_reduction(name, reduction)
    call = _mixture(name, logits, weights, temperatures)
    call = call._replace(targets=targets, ignore_index=ignore_index)
    gathered = of_targets(_GATHER, call, impl)
    losses = torch.where(targets == ignore_index, 0, -gathered)
    return reduced(losses, targets, ignore_index, reduction)


def _mixture(
    name: str,
    logits: Sequence[Tensor],
    weights: Numbers | None,
    temperatures: Numbers | None,
    log_weights: Tensor | None = None,
) -> MixtureCall:
    checked = check_logits(name, logits, may_be_empty=False)
    scale = 1 / numbers(name, "temperatures", temperatures, checked, 1)
    log_weight = None
    if log_weights is not None:
        if weights is not None:
            raise argument_error(name, "log_weights", "None if weights is given", "both")
        log_weight = numbers(name, "log_weights", log_weights, checked, 0)
        weights = (~log_weight.isneginf()).to(log_weight.dtype)
    all_present = without_zero(weights, temperatures)
    weight = numbers(name, "weights", weights, checked, 1 / len(checked))
    if not all_present:
        scale = torch.where(weight == 0, 0, scale)
    return MixtureCall(name, MeanCall(checked, scale, all_present), weight, log_weight)


def _log_of_sum(log_terms: list[Tensor], weight: Tensor, all_present: bool) -> Tensor:
    """Return log Σ_k weight[k] · exp(log_terms[k]) for K tensors.

    The weights [..., K] must be broadcastable to them. Terms of weight zero are excluded.
    """
    shares = weight.unbind(-1)
    if not all_present:
        log_terms = [
            term.masked_fill(share == 0, float("-inf"))
            for term, share in zip(log_terms, shares, strict=True)
        ]
    top = functools.reduce(torch.maximum, [term.detach() for term in log_terms])
    # If every term is −inf, the difference would be NaN.
    top = top.clamp(min=torch.finfo(top.dtype).min)
    parts = (share * (term - top).exp() for share, term in zip(shares, log_terms, strict=True))
    return functools.reduce(torch.add, parts).log() + top


def _eager_mean(call: MixtureCall) -> Tensor:
    """The formula in plain PyTorch; every expert's log-probabilities are stored in memory."""
    parts = [averaged(alone).log_softmax(-1) for alone in call.experts()]
    if call.log_weight is not None:
        offsets = call.log_weight[..., None, :].unbind(-1)
        parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
    return _log_of_sum(parts, call.weight[..., None, :], call.mean.all_present)


def _native_mean(call: MixtureCall) -> Tensor:
    """Two passes over the logits (probability_mean.cpp and .cu)."""
    mean = call.mean
    return native_probability_mean(mean.logits, mean.scale, call.weight, call.log_weight)


def _like(logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None) -> Tensor:
    return weight.new_empty(logits[0].shape)


@operator(_like)
def native_probability_mean(
    logits: list[Tensor], scale: Tensor, weight: Tensor, log_weight: Tensor | None
) -> Tensor:
    """Return the log-probabilities of all tokens."""
    out = _like(logits, scale, weight, log_weight)
    if on_gpu(scale):
        run_extension(
            *("probability_mean_out", logits, scale, weight, log_weight, out),
            part_bytes=(len(logits) * MASS_BYTES,),
        )
        return out
    log_sums = torch.stack(
        [log_sum_exp([x], factor) for x, factor in zip(logits, factors(scale), strict=True)], dim=-1
    )
    offsets = (weight.abs().log() if log_weight is None else log_weight) - log_sums
    signs = weight.sign().expand(offsets.shape).contiguous()
    run_extension("probability_mean_out", logits, scale, offsets.contiguous(), signs, out)
    return out


def _gather(log_probabilities: Callable[[LossCall], Tensor], call: MixtureCall) -> Tensor:
    """Compute the result from each expert's log-probabilities of the targets."""
    assert call.targets is not None
    parts = [
        log_probabilities(LossCall(call.operation, alone, call.targets, call.ignore_index))
        for alone in call.experts()
    ]
    return _log_of_sum(parts, call.weight, call.mean.all_present)


def _example(device: torch.device) -> MixtureCall:
    mean, targets = example_call(device), torch.zeros(1, dtype=torch.int64, device=device)
    return MixtureCall("", mean, mean.scale, None, targets)


_MEAN = Operation(
    "probability_mean",
    (
        Implementation(
            "native",
            _native_mean,
            lambda call: can_serve(call, constant=True),
            pays("probability_mean"),
        ),
        Implementation("eager", _eager_mean),
    ),
    _example,
)
_GATHER = Operation(
    "probability_mean_gather",
    (
        Implementation(
            "native",
            functools.partial(_gather, native_gather),
            can_serve,
            pays("probability_mean_gather"),
        ),
        Implementation("eager", functools.partial(_gather, eager_gather)),
    ),
    _example,
)

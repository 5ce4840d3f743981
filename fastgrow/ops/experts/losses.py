"""What K experts' averaged logits say of targets: the cross-entropy and the log-probabilities.

    z      = sum_k  weights[k] / temperatures[k] * logits[k]
    loss_n = log Σ_v exp(z_v) − z_target

`mean` divides by the number of targets that are not `ignore_index`. Natively neither z nor its
softmax is ever in memory: forward and backward read every expert's logits once, one log-sum-exp a
row is kept between them, and the backward pass allocates the gradients that are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops.core.checks import check_targets, run_in_range
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.extension import on_gpu, plan_of, run_extension
from fastgrow.ops.core.registration import operator, refuse_double_backward
from fastgrow.ops.experts.mean import (
    MeanCall,
    Numbers,
    averaged,
    can_serve,
    example_call,
    mean_call,
    pays,
)
from fastgrow.ops.heads.heads import check_reduction, reduced

# No target has this number; where no target is to be ignored, it is the number that would be.
NO_TARGET = torch.iinfo(torch.int64).min
# What a GPU's block leaves of a part of a row: its largest logit and the sum of exponentials
# relative to it, in float32.
MASS_BYTES = 8


class LossCall(NamedTuple):
    """`mean_cross_entropy`, or `mean_log_softmax_gather`, which is less that without a reduction.

    Args:
        operation: its name, for errors.
        targets: [...].
        ignore_index: a target that counts nothing.
        reduction: `mean`, `sum` or `none`.
    """

    operation: str
    mean: MeanCall
    targets: Tensor
    ignore_index: int = NO_TARGET
    reduction: str = "none"


def mean_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of the targets under the experts' averaged logits, in nats.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        targets: [...] int64 or int32, each in [0, V) or `ignore_index`.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert. Zero takes the expert out, whatever its logits
            are; the gradients of that weight and of these logits are zero.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        ignore_index: targets of this value count nothing and get no gradient.
        reduction: `mean` (NaN if every target is ignored, as torch has it), `sum` or `none`.
        impl: force `eager`, `native`, …

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position. On a CPU,
            and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
    """
    name = "mean_cross_entropy"
    check_reduction(name, reduction)
    mean = mean_call(name, logits, weights, temperatures)
    return of_targets(_LOSS, LossCall(name, mean, targets, ignore_index, reduction), impl)


def mean_log_softmax_gather(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """Log-probability of each target under the softmax of the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        targets: [...] int64 or int32, each in [0, V).
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert. Zero takes the expert out, whatever its logits
            are; the gradients of that weight and of these logits are zero.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        [...] in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position. On a CPU,
            and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
    """
    name = "mean_log_softmax_gather"
    mean = mean_call(name, logits, weights, temperatures)
    return of_targets(_GATHER, LossCall(name, mean, targets), impl)


def of_targets(operation: Operation, call: Any, impl: str | None) -> Tensor:
    """Run a call that has targets, once these are checked."""
    name, targets, logits = call.operation, call.targets, call.mean.logits[0]
    check_targets(name, targets, logits)
    limit, ignored = logits.shape[-1], call.ignore_index
    return run_in_range(lambda: operation(call, impl), name, "targets", targets, limit, ignored)


def _eager_losses(call: LossCall) -> Tensor:
    """The formula; mean and softmax are in memory."""
    mean, targets = averaged(call.mean), call.targets
    loss = F.cross_entropy(
        mean.reshape(-1, mean.shape[-1]),
        targets.flatten().long(),
        ignore_index=call.ignore_index,
        reduction=call.reduction,
    )
    return loss.view(targets.shape) if call.reduction == "none" else loss


def eager_gather(call: LossCall) -> Tensor:
    """log softmax(mean)[target], the shape of the targets; zero where ignored."""
    # Not gather, which has another error for a target out of range, and none on some devices.
    return -_eager_losses(call)


def _native_losses(call: LossCall) -> Tensor:
    """One pass over the logits, one more for the gradients (log_probability.cpp and .cu)."""
    return reduced(-native_gather(call), call.targets, call.ignore_index, call.reduction)


def native_gather(call: LossCall) -> Tensor:
    """`eager_gather` by the extension."""
    logits, scale, _ = call.mean
    targets = call.targets.long().contiguous()
    return _LogProbability.apply(call.operation, call.ignore_index, scale, targets, *logits)


class GatherCall(NamedTuple):
    """Log-probabilities of targets, contiguous int64, as the extension's operators take them."""

    logits: list[Tensor]
    scale: Tensor
    targets: Tensor
    ignore_index: int


def _like_forward(call: GatherCall) -> tuple[Tensor, Tensor]:
    return call.scale.new_empty(call.targets.shape), call.scale.new_empty(call.targets.shape)


@operator(_like_forward)
def mean_log_probability(call: GatherCall) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and log-sum-exps of the rows."""
    log_probabilities, log_sums = _like_forward(call)
    run_extension(
        "mean_log_probability_out", *call, log_sums, log_probabilities, part_bytes=(MASS_BYTES,)
    )
    return log_probabilities, log_sums


def log_sum_exp(logits: list[Tensor], scale: Tensor) -> Tensor:
    """The log-sum-exp of each row of the mean, by the extension."""
    log_sums = scale.new_empty(logits[0].shape[:-1])
    run_extension(
        *("mean_log_probability_out", logits, scale, None, NO_TARGET, log_sums, None),
        part_bytes=(MASS_BYTES,),
    )
    return log_sums


def _like_backward(
    call: GatherCall, log_sums: Tensor, gradient: Tensor, for_scale: bool, for_logits: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    d_scale = call.scale.new_empty(call.scale.shape if for_scale else (0,))
    wanted = zip(call.logits, for_logits, strict=True)
    return d_scale, [x.new_empty(x.shape) for x, needed in wanted if needed]


@operator(_like_backward)
def mean_log_probability_backward(
    call: GatherCall, log_sums: Tensor, gradient: Tensor, for_scale: bool, for_logits: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the factors and of those logits that want one."""
    _, scale, targets, _ = call
    d_scale, d_logits = _like_backward(call, log_sums, gradient, for_scale, for_logits)
    places = [k for k, needed in enumerate(for_logits) if needed]
    # By row always, and on a GPU by part of a row; factors that all rows share get the sum.
    parts = plan_of("", call.logits[0]).parts if on_gpu(scale) else 1
    d_rows = scale.new_empty(targets.numel(), parts, len(for_logits)) if for_scale else None
    run_extension(
        "mean_log_probability_backward_out",
        *call,
        log_sums,
        gradient.contiguous(),
        d_logits,
        places,
        d_rows,
    )
    if d_rows is not None:
        d_scale.copy_(d_rows.sum((0, 1)) if scale.dim() == 1 else d_rows.sum(1).view(scale.shape))
    return d_scale, d_logits


class _LogProbability(torch.autograd.Function):
    """d logits[k] = scale[k] · g · (one-hot − softmax), d scale[k] its product with logits[k]."""

    @staticmethod
    def forward(
        ctx: Any,
        operation: str,
        ignore_index: int,
        scale: Tensor,
        targets: Tensor,
        *logits: Tensor,
    ) -> Tensor:
        log_probabilities, log_sums = mean_log_probability(logits, scale, targets, ignore_index)
        ctx.operation, ctx.ignore_index = operation, ignore_index
        ctx.save_for_backward(log_sums, scale, targets, *logits)
        return log_probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward(ctx.operation)
        log_sums, scale, targets, *logits = ctx.saved_tensors
        _, _, for_scale, _, *for_logits = ctx.needs_input_grad
        d_scale, d_logits = mean_log_probability_backward(
            *(logits, scale, targets, ctx.ignore_index),
            *(log_sums, gradients[0], for_scale, for_logits),
        )
        wanted = iter(d_logits)
        return (
            *(None, None, d_scale if for_scale else None, None),
            *(next(wanted) if needed else None for needed in for_logits),
        )


def _example(device: torch.device) -> LossCall:
    return LossCall("", example_call(device), torch.zeros(1, dtype=torch.int64, device=device))


_LOSS = Operation(
    "mean_cross_entropy",
    (
        Implementation("native", _native_losses, can_serve, pays("mean_cross_entropy")),
        Implementation("eager", _eager_losses),
    ),
    _example,
)
_GATHER = Operation(
    "mean_log_softmax_gather",
    (
        Implementation("native", native_gather, can_serve, pays("mean_log_softmax_gather")),
        Implementation("eager", eager_gather),
    ),
    _example,
)

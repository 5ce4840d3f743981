"""Cross-entropy and log-probabilities of targets under K experts' averaged logits.

    z      = sum_k  weights[k] / temperatures[k] * logits[k]
    loss_n = log Σ_v exp(z_v) − z_target

`mean` divides by the number of targets that are not `ignore_index`. The `native` implementation
stores neither z nor its softmax: forward and backward read every expert's logits once, one
log-sum-exp per row is saved for backward, and the backward pass allocates only the gradients that
are needed.
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
from fastgrow.ops.core.registration import forbid_double_backward, operator
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

# The `ignore_index` if no target is to be ignored: no target has this value.
NO_TARGET = torch.iinfo(torch.int64).min
# Bytes that a thread block on a GPU writes per part of a row: its largest logit and the sum of
# exponentials relative to it, in float32.
MASS_BYTES = 8


class LossCall(NamedTuple):
    """A call of `mean_cross_entropy`, or of `mean_log_softmax_gather` (the negated losses).

    Args:
        operation: name of the operation, for errors.
        targets: [...].
        ignore_index: targets of this value are ignored.
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
    """Return the cross-entropy of the targets under the experts' averaged logits, in nats.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        targets: [...] int64 or int32, each in [0, V) or `ignore_index`.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert; tensors may require a gradient. Default: 1/K each. A weight of zero excludes the
            expert, even if its logits are NaN or infinite; the gradients of that weight and of
            these logits are zero.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        ignore_index: targets of this value do not contribute to the loss or the gradients.
        reduction: `mean` (NaN if every target is ignored, as in torch), `sum` or `none`.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position. A target out of range raises on a CPU, and on other devices only
            under FASTGROW_DEBUG=1.
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
    """Return the log-probability of each target under the softmax of the averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        targets: [...] int64 or int32, each in [0, V).
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert; tensors may require a gradient. Default: 1/K each. A weight of zero excludes the
            expert, even if its logits are NaN or infinite; the gradients of that weight and of
            these logits are zero.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        [...] in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position. A target out of range raises on a CPU, and on other devices only
            under FASTGROW_DEBUG=1.
    """
    name = "mean_log_softmax_gather"
    mean = mean_call(name, logits, weights, temperatures)
    return of_targets(_GATHER, LossCall(name, mean, targets), impl)


def of_targets(operation: Operation, call: Any, impl: str | None) -> Tensor:
    """Check the targets of a call, then run it."""
    name, targets, logits = call.operation, call.targets, call.mean.logits[0]
    check_targets(name, targets, logits)
    limit, ignored = logits.shape[-1], call.ignore_index
    return run_in_range(lambda: operation(call, impl), name, "targets", targets, limit, ignored)


def _eager_losses(call: LossCall) -> Tensor:
    """The formula in plain PyTorch; mean and softmax are stored in memory."""
    mean, targets = averaged(call.mean), call.targets
    loss = F.cross_entropy(
        mean.reshape(-1, mean.shape[-1]),
        targets.flatten().long(),
        ignore_index=call.ignore_index,
        reduction=call.reduction,
    )
    return loss.view(targets.shape) if call.reduction == "none" else loss


def eager_gather(call: LossCall) -> Tensor:
    """Return log softmax(mean)[target], in the shape of the targets; zero for ignored ones."""
    # Not gather, which has a different error for a target out of range, and none on some devices.
    return -_eager_losses(call)


def _native_losses(call: LossCall) -> Tensor:
    """One pass over the logits, and one for the gradients (log_probability.cpp and .cu)."""
    return reduced(-native_gather(call), call.targets, call.ignore_index, call.reduction)


def native_gather(call: LossCall) -> Tensor:
    """`eager_gather`, computed by the extension."""
    logits, scale, _ = call.mean
    targets = call.targets.long().contiguous()
    return _LogProbability.apply(call.operation, call.ignore_index, scale, targets, *logits)


class GatherCall(NamedTuple):
    """Arguments of the extension's operators; the targets are contiguous int64."""

    logits: list[Tensor]
    scale: Tensor
    targets: Tensor
    ignore_index: int


def _like_forward(call: GatherCall) -> tuple[Tensor, Tensor]:
    return call.scale.new_empty(call.targets.shape), call.scale.new_empty(call.targets.shape)


@operator(_like_forward)
def mean_log_probability(call: GatherCall) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the targets and log-sum-exps of the rows."""
    log_probabilities, log_sums = _like_forward(call)
    run_extension(
        "mean_log_probability_out", *call, log_sums, log_probabilities, part_bytes=(MASS_BYTES,)
    )
    return log_probabilities, log_sums


def log_sum_exp(logits: list[Tensor], scale: Tensor) -> Tensor:
    """Return the log-sum-exp of each row of the mean, computed by the extension."""
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
    pairs = zip(call.logits, for_logits, strict=True)
    return d_scale, [x.new_empty(x.shape) for x, needed in pairs if needed]


@operator(_like_backward)
def mean_log_probability_backward(
    call: GatherCall, log_sums: Tensor, gradient: Tensor, for_scale: bool, for_logits: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the factors and of the logits that need one."""
    _, scale, targets, _ = call
    d_scale, d_logits = _like_backward(call, log_sums, gradient, for_scale, for_logits)
    places = [k for k, needed in enumerate(for_logits) if needed]
    # One gradient per row, and on a GPU per part of a row; factors of all rows get the sum.
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
        forbid_double_backward(ctx.operation)
        log_sums, scale, targets, *logits = ctx.saved_tensors
        _, _, for_scale, _, *for_logits = ctx.needs_input_grad
        d_scale, d_logits = mean_log_probability_backward(
            *(logits, scale, targets, ctx.ignore_index),
            *(log_sums, gradients[0], for_scale, for_logits),
        )
        found = iter(d_logits)
        return (
            *(None, None, d_scale if for_scale else None, None),
            *(next(found) if needed else None for needed in for_logits),
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

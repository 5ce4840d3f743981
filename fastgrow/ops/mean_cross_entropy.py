"""The cross-entropy of K experts' averaged logits.

    z      = sum_k  weights[k] / temperatures[k] * logits[k]
    loss_n = log Σ_v exp(z_v) − z_target

`mean` divides by the number of targets that are not `ignore_index`. Natively neither z nor its
softmax is ever in memory; the backward pass allocates the gradients that are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops._experts import (
    Numbers,
    averaged,
    check_logits,
    check_targets,
    check_vocabulary,
    example_logits,
    factors,
    pays_native,
)
from fastgrow.ops._log_probability import log_probability, verify_log_probability
from fastgrow.ops.core.checks import check_range, out_of_range
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.legacy import Operation

NAME = "mean_cross_entropy"
REDUCTIONS = ("mean", "sum", "none")


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
            [..., K], one for each row and expert, where zero takes the expert out of the row.
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
    logits = list(logits)
    check_reduction(NAME, reduction)
    check_logits(NAME, logits)
    check_vocabulary(NAME, logits)
    check_targets(NAME, logits, targets)
    vocabulary = logits[0].shape[-1]
    check_range(NAME, "targets", targets, 0, vocabulary, ignore=ignore_index)
    scale = factors(NAME, logits, weights, temperatures)
    arguments = (logits, scale, targets, ignore_index, reduction)
    if torch.compiler.is_compiling():
        return OPERATION(*arguments, impl=impl)
    try:
        return OPERATION(*arguments, impl=impl)
    except IndexError:
        raise out_of_range(NAME, "targets", targets, vocabulary, ignore_index) from None


def check_reduction(operation: str, reduction: str) -> None:
    """Refuse a reduction that is none of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise argument_error(
            operation, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction)
        )


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses that are zero where ignored, as the caller wants them."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    targets = torch.zeros(1, dtype=torch.int64, device=device)
    return (*example_logits(device), targets, -100, "mean"), {}


OPERATION = Operation(NAME, example=_example)


@OPERATION.implementation("eager")
def eager(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """The formula; mean and softmax are in memory."""
    mean = averaged(logits, scale).reshape(-1, logits[0].shape[-1])
    flat = targets.flatten().long()
    loss = F.cross_entropy(mean, flat, ignore_index=ignore_index, reduction=reduction)
    return loss.view(targets.shape) if reduction == "none" else loss


def _verify_native(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> Answer:
    return verify_log_probability(logits, scale)


@OPERATION.implementation("native", verify=_verify_native, pays=pays_native)
def native(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """One pass over the logits, one more for the gradients (csrc/cpu/log_probability.cpp)."""
    losses = -log_probability(NAME, logits, scale, targets, ignore_index)
    return reduced(losses, targets, ignore_index, reduction)

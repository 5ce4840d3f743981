"""The log-probabilities that K experts' averaged logits give to some tokens.

    z      = sum_k  weights[k] / temperatures[k] * logits[k]
    result = z[target] − log Σ_v exp(z[v])

Natively neither z nor its softmax is ever in memory, backward included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

NAME = "mean_log_softmax_gather"


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
            [..., K], one for each row and expert, where zero takes the expert out of the row.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        [...] in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position. On a CPU,
            and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
    """
    logits = list(logits)
    check_logits(NAME, logits)
    check_vocabulary(NAME, logits)
    check_targets(NAME, logits, targets)
    vocabulary = logits[0].shape[-1]
    check_range(NAME, "targets", targets, 0, vocabulary)
    scale = factors(NAME, logits, weights, temperatures)
    if torch.compiler.is_compiling():
        return OPERATION(logits, scale, targets, impl=impl)
    try:
        return OPERATION(logits, scale, targets, impl=impl)
    except IndexError:
        raise out_of_range(NAME, "targets", targets, vocabulary) from None


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (*example_logits(device), torch.zeros(1, dtype=torch.int64, device=device)), {}


OPERATION = Operation(NAME, example=_example)


@OPERATION.implementation("eager")
def eager(logits: list[Tensor], scale: Tensor, targets: Tensor) -> Tensor:
    """The formula; mean and softmax are in memory."""
    mean = averaged(logits, scale)
    # Not gather, which has another error for a target out of range, and none on some devices.
    losses = F.cross_entropy(
        mean.reshape(-1, mean.shape[-1]),
        targets.flatten().long(),
        ignore_index=torch.iinfo(torch.int64).min,
        reduction="none",
    )
    return -losses.view(targets.shape)


def _verify_native(logits: list[Tensor], scale: Tensor, targets: Tensor) -> Answer:
    return verify_log_probability(logits, scale)


@OPERATION.implementation("native", verify=_verify_native, pays=pays_native)
def native(logits: list[Tensor], scale: Tensor, targets: Tensor) -> Tensor:
    """One pass over the logits (csrc/cpu/log_probability.cpp)."""
    return log_probability(NAME, logits, scale, targets, None)

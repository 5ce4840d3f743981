"""Operations on the experts' logits and scores, as functions of plain tensors.

Shapes: logits [B, T, V], one tensor for each of K experts; values per token and expert [B, T, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from fastgrow import ops


def logit_sum(logits: Sequence[Tensor], coefficients: Sequence[float] | Tensor) -> Tensor:
    """Compute Σ_k c_k · z_k.

    An expert whose coefficient is zero is left out, as in `ops.logit_mean`, so that its infinite
    logits do not become NaN.

    Args:
        logits: K tensors of one shape.
        coefficients: K numbers, not all zero; or a tensor [..., K] with K numbers for each row.

    Returns:
        A tensor of the same shape, summed in float32 or higher precision, in the widest dtype of
        the logits.
    """
    if isinstance(coefficients, Tensor):
        return ops.logit_mean(in_one_dtype(logits), coefficients)
    kept = [(z, c) for z, c in zip(in_one_dtype(logits), coefficients, strict=True) if c != 0]
    if not kept:
        raise ValueError("logit_sum: every coefficient is zero")
    return ops.logit_mean([z for z, _ in kept], [c for _, c in kept])


def in_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Convert the tensors to the widest of their dtypes."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]


def scores_within(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log p(ids_t | ids_<t) of all tokens but the first, [B, T − 1], in at least float32."""
    return ops.mean_log_softmax_gather([logits[:, :-1]], ids[:, 1:])


def cut(logits: Sequence[Tensor], last_only: bool) -> Sequence[Tensor]:
    """Return the logits of all positions, or with `last_only` of the last one."""
    return [z[:, -1:] for z in logits] if last_only else logits


def decayed_sums(values: Tensor, carry: Tensor, initial: Tensor) -> Tensor:
    """Compute s_t = carry_t · s_(t−1) + values_t for every t, in ⌈log₂ T⌉ parallel steps.

    Parallel prefix sum (Hillis and Steele 1986): after step i, entry t holds the recurrence over
    the last 2ⁱ tokens, and the product of their carries is the factor on the sum before them. There
    is no subtraction and no division, so a carry of zero restarts the sum exactly.

    Args:
        values: [B, T, K].
        carry: [B, T], the factor on the previous sum.
        initial: s before the first token, [B, K].

    Returns:
        [B, T, K].
    """
    length = values.shape[1]
    first = values[:, :1] + carry[:, :1, None] * initial[:, None]
    sums = torch.cat([first, values[:, 1:]], dim=1)
    factors = carry[..., None]
    step = 1
    while step < length:
        later = sums[:, step:] + factors[:, step:] * sums[:, :-step]
        sums = torch.cat([sums[:, :step], later], dim=1)
        factors = torch.cat([factors[:, :step], factors[:, step:] * factors[:, :-step]], dim=1)
        step *= 2
    return sums

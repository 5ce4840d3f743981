"""The arithmetic of composition on plain tensors; it knows no expert, no rule and no model.

Shapes: logits [B, T, V], one tensor for each of K experts; what belongs to a token and an expert is
[B, T, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from fastgrow import ops


def logit_sum(logits: Sequence[Tensor], coefficients: Sequence[float] | Tensor) -> Tensor:
    """Σ_k c_k · z_k.

    An expert whose coefficient is zero is left out, as `ops.logit_mean` has it: its infinities
    don't become NaN.

    Args:
        logits: K tensors of one shape.
        coefficients: K numbers, not all zero; or a tensor [..., K] with a number for each row.

    Returns:
        A tensor of that shape, summed in float32 or better, in the widest of the dtypes.
    """
    if isinstance(coefficients, Tensor):
        return ops.logit_mean(in_one_dtype(logits), coefficients)
    kept = [(z, c) for z, c in zip(in_one_dtype(logits), coefficients, strict=True) if c != 0]
    if not kept:
        raise ValueError("logit_sum: every coefficient is zero")
    return ops.logit_mean([z for z, _ in kept], [c for _, c in kept])


def in_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in the widest of their dtypes."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]


def scores_within(logits: Tensor, ids: Tensor) -> Tensor:
    """log p(ids_t | ids_<t) for every token but the first, [B, T − 1], in float32 or better."""
    return ops.mean_log_softmax_gather([logits[:, :-1]], ids[:, 1:])


def cut(logits: Sequence[Tensor], last_only: bool) -> Sequence[Tensor]:
    """All positions, or for `last_only` the last one."""
    return [z[:, -1:] for z in logits] if last_only else logits


def decayed_sums(values: Tensor, carry: Tensor, initial: Tensor) -> Tensor:
    """s_t = carry_t · s_(t−1) + values_t for every t, in ⌈log₂ T⌉ parallel steps.

    Doubling (Hillis and Steele 1986): after step i, entry t holds the recurrence over the last 2ⁱ
    tokens, and the product of their carries says how it continues. Nothing is subtracted or
    divided, so a carry of zero starts the sum anew exactly.

    Args:
        values: [B, T, K].
        carry: [B, T], the factor on the sum before.
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

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

    An expert whose coefficient is zero is left out and not multiplied by zero: its infinities
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


def log_mixture(logits: Sequence[Tensor], log_weights: Tensor, log_sums: Tensor) -> Tensor:
    """log Σ_k w_k · softmax(z_k): the logarithm of a mixture of K distributions.

    Never leaves the space of logarithms, so that nothing underflows, and goes expert by expert, so
    that nothing of size K x V is built.

    Args:
        logits: K tensors [B, T, V].
        log_weights: log w_k, [K] or [B, T, K].
        log_sums: each expert's logsumexp over its vocabulary, [B, T, K].

    Returns:
        Log-probabilities [B, T, V] in float32 or better.
    """
    dtype = accumulation_dtype(logits)
    offsets = (log_weights - log_sums).to(dtype)
    mixture = logits[0].to(dtype) + offsets[..., 0, None]
    for k, z in enumerate(logits[1:], start=1):
        mixture = torch.logaddexp(mixture, z.to(dtype) + offsets[..., k, None])
    return mixture


def log_normalizers(logits: Sequence[Tensor]) -> Tensor:
    """Each expert's logsumexp over the vocabulary: K tensors [B, T, V] to [B, T, K]."""
    dtype = accumulation_dtype(logits)
    return torch.stack([z.to(dtype).logsumexp(-1) for z in logits], dim=-1)


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


def accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype to add up in: the tensors' own, but no less than float32."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)

"""`linear_cross_entropy` from the log-sum-exp of each row and its target's logit.

Gradients of any reduction, z-loss and smoothing are those of a formula over [N] numbers, followed
by the general backward of `linear_lse_gather`, which makes the logits a second time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops import _linear_lse_triton
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_lse_triton import MAX_HEADS
from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer


def can_serve(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Answer:
    """The verifier."""
    return _linear_lse_triton.can_serve(heads, targets, label_smoothing > 0)


def pays(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Answer:
    """By counting products and passes over memory, not measured."""
    ok, reason = triton_support.pays_on(heads.h[0])
    if not ok:
        return False, reason
    if reduction == "none" or not gradients_fit(heads)[0]:
        return True, ""
    if heads.need_grad():
        return False, "gradients made beside the loss take three products, afterwards four"
    if heads.autocast_dtype == torch.float32:
        return False, "the library's float32 products are faster"
    return aligned(heads)


def gradients_fit(heads: Heads) -> Answer:
    """Whether the dtype holds gradients that have not been multiplied by a loss scale.

    One of float16 is applied to the loss, after its gradients are made; a probability over the
    number of rows is often below the smallest number of float16.
    """
    if heads.autocast_dtype == torch.float16 and heads.need_grad():
        return False, "float16 gradients made beside the loss vanish before a loss scale is applied"
    return True, ""


def aligned(heads: Heads) -> Answer:
    """Rows that start at multiples of 16 elements are loaded in whole vectors, ahead of time."""
    if any(x.dim() > 1 and x.stride(0) % 16 for x in heads.tensors() if x.shape[-1] > MAX_HEADS):
        return False, "rows that start at no multiple of 16 elements load slowly"
    return True, ""


def linear_cross_entropy_triton(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The kernels of `linear_lse_gather`."""
    terms = _linear_lse_triton.linear_lse_gather_triton(heads, targets, label_smoothing > 0)
    losses = losses_of(terms, heads, targets, ignore_index, label_smoothing, z_loss)
    return reduced(losses, targets, ignore_index, reduction)


def losses_of(
    terms: tuple[Tensor, Tensor, Tensor],
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """Each row's loss; 0 where the target is ignored, NaN where it is out of range."""
    lse, target_logit, mean = terms
    if label_smoothing:
        expected = (1 - label_smoothing) * target_logit + label_smoothing * mean
    else:
        expected = target_logit
    losses = lse - expected
    if z_loss:
        losses = losses + z_loss * lse.square()
    outside = (targets < 0) | (targets >= heads.vocabulary)
    losses = losses.masked_fill(outside, float("nan"))
    return losses.masked_fill(targets == ignore_index, 0.0)


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses of rows to the loss asked for."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total

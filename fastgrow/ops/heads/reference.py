"""The formulas in plain PyTorch: all logits are in memory at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import HeadLossCall, KlCall, LseCall
from fastgrow.ops.core.dtypes import wide_dtype, widened
from fastgrow.ops.heads.heads import HeadsCall, reduced, targets_in


def logits(call: HeadsCall) -> Tensor:
    """Return all logits, [N, V]; float32 for half-precision inputs."""
    z = widened(F.linear(call.h[0], call.weight[0], call.bias))
    for h, weight in zip(call.h[1:], call.weight[1:], strict=True):
        z = z + F.linear(h, weight).to(z.dtype)
    return z


def teacher_logits(call: KlCall) -> Tensor:
    """Return the weighted sum of the teachers' logits, [N, V]."""
    h, weight = call.teacher_h[0], call.teacher_weight[0]
    total = h.new_zeros(h.shape[0], weight.shape[0], dtype=wide_dtype(h.dtype))
    for x, w, bias, share in zip(
        call.teacher_h, call.teacher_weight, call.teacher_bias, call.shares, strict=True
    ):
        total.add_(widened(F.linear(x, w, bias)), alpha=share)
    return total


def linear_lse_gather(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Return lse, target logit, and mean logit or an empty tensor."""
    z = logits(call)
    here, index = targets_in(call.targets, slice(0, z.shape[1]))
    target_logit = torch.where(here, z.gather(1, index).squeeze(1), 0)
    return z.logsumexp(1), target_logit, z.mean(1) if call.with_mean else z.new_empty(0)


def linear_cross_entropy(call: HeadLossCall) -> Tensor:
    """Return torch's cross-entropy of the logits."""
    z = logits(call)
    *_, targets, ignore_index, reduction, label_smoothing, z_loss = call
    loss = F.cross_entropy(
        z,
        targets.long(),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if z_loss:
        squares = torch.where(targets != ignore_index, z.logsumexp(-1).square(), 0)
        loss = loss + z_loss * reduced(squares, targets, ignore_index, reduction)
    return loss


def linear_kl(call: KlCall) -> Tensor:
    """Return the divergence; the teacher's logits are in memory too."""
    T = call.temperature
    with torch.no_grad():
        log_p = F.log_softmax(teacher_logits(call) / T, -1)
        p = log_p.exp()
    log_q = F.log_softmax(logits(call) / T, -1)
    # For p = 0 the logarithm is −inf, and the term is 0.
    losses = T**2 * (torch.where(p > 0, log_p - log_q, 0) * p).sum(-1)
    return reduced(torch.where(call.counts, losses, 0), call.counts, False, call.reduction)

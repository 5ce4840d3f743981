"""Cross-entropy of logits in memory, and its gradient, which may be written in place.

    loss = (1 − s) · (lse − z_target) + s · (lse − mean_v z_v) + z_loss · lse²
    dz   = share · ((1 + 2 · z_loss · lse) · exp(z − lse) − (1 − s) · [v = target] − s / V)

One program per row makes two passes over it, the second one from the L2 cache. Arithmetic is fp32;
the bias is added here, so that it is not rounded with the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgrow.kernels.calls import HeadLossCall
from fastgrow.kernels.common import LN_2, LOG2_E, next_power_of_2, on_device_of

LOG2_E_ = tl.constexpr(LOG2_E)
LN_2_ = tl.constexpr(LN_2)
BLOCK = 4096


def fill_losses(
    call: HeadLossCall,
    rows: slice,
    logits: torch.Tensor,
    share: torch.Tensor,
    losses: torch.Tensor,
    gradient: torch.Tensor | None,
) -> None:
    """Fill `losses[rows]` and, unless it is None, `gradient`, from the logits of these rows.

    The loss is 0 if the target is ignored, and NaN if it is neither ignored nor in [0, V).

    Args:
        call: arguments of the operation; h and weight are not read.
        logits: [rows, V] with contiguous rows, without the bias.
        share: [N] fp32, weight of each row's loss in the loss that is differentiated.
        losses: [N].
        gradient: tensor like `logits`; may be `logits` itself.
    """
    n, vocabulary = logits.shape
    bias = None if call.bias is None else call.bias.contiguous()
    with on_device_of(logits):
        loss_kernel[(n,)](
            logits, bias, call.targets[rows].contiguous(), share[rows], losses[rows], gradient,
            logits.stride(0), 0 if gradient is None else gradient.stride(0), vocabulary,
            call.ignore_index, call.label_smoothing, call.z_loss,
            SMOOTH=call.label_smoothing > 0, num_warps=8,
            BLOCK=min(BLOCK, next_power_of_2(vocabulary)),
        )  # fmt: skip


@triton.jit
def loss_kernel(
    logits,
    bias,
    targets,
    shares,
    losses,
    gradient,
    stride,
    gradient_stride,
    vocabulary,
    ignore_index,
    label_smoothing,
    z_loss,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    is_word = (target >= 0) & (target < vocabulary)
    target_word = tl.where(is_word, target, -1).to(tl.int32)
    smoothing, z_weight = tl.cast(label_smoothing, tl.float32), tl.cast(z_loss, tl.float32)
    block = tl.arange(0, BLOCK)
    highest = tl.full([], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    chosen = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        word = start + block
        z = _logits(logits, bias, word, vocabulary)
        above = tl.maximum(highest, tl.max(z, 0) * LOG2_E_)
        # The pivot has to be finite, so that infinite logits give infinite sums.
        pivot = tl.where(tl.abs(above) == float("inf"), 0.0, above)
        scale = tl.where(highest == float("-inf"), 0.0, tl.exp2(highest - pivot))
        sums = sums * scale + tl.exp2(z * LOG2_E_ - pivot)
        highest = above
        chosen += tl.where(word == target_word, z, 0.0)
        if SMOOTH:
            total += tl.where(word < vocabulary, z, 0.0)
    pivot = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
    lse = (pivot + tl.log2(tl.sum(sums, 0))) * LN_2_
    expected = tl.sum(chosen, 0)
    if SMOOTH:
        expected = (1 - smoothing) * expected + smoothing * (tl.sum(total, 0) / vocabulary)
    loss = lse - expected + z_weight * lse * lse
    is_kept = target != ignore_index
    tl.store(losses + row, tl.where(is_kept, tl.where(is_word, loss, float("nan")), 0.0))
    if gradient is not None:
        gradient += row * gradient_stride
        share = tl.load(shares + row)
        of_lse = share * (1 + 2 * z_weight * lse)
        of_target = (smoothing - 1) * share
        of_mean = -share * smoothing / vocabulary
        pivot = tl.where(lse == float("-inf"), 0.0, lse) * LOG2_E_
        for start in range(0, vocabulary, BLOCK):
            word = start + block
            z = _logits(logits, bias, word, vocabulary)
            dz = tl.exp2(z * LOG2_E_ - pivot) * of_lse + of_mean
            dz += tl.where(word == target_word, of_target, 0.0)
            tl.store(gradient + word, dz.to(gradient.dtype.element_ty), mask=word < vocabulary)


@triton.jit
def _logits(logits, bias, word, vocabulary):
    z = tl.load(logits + word, mask=word < vocabulary, other=float("-inf")).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + word, mask=word < vocabulary, other=0.0).to(tl.float32)
    return z

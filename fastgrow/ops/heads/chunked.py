"""`linear_cross_entropy` with its gradients made beside the loss, some rows of logits at a time.

The gradient of a row's logits is at hand when its loss is, so making the products with it there
saves keeping the logits or making them again: three products, where recomputing takes four. The
gradient of the loss, one number, is multiplied in afterwards. Torch alone is needed. In half
precision logits and sums over rows are float32, and the gradient of the logits is rounded for the
products with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import HeadLossCall
from fastgrow.ops.core.dtypes import wide_dtype
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads import logit_tiles
from fastgrow.ops.heads.heads import (
    add_products,
    beside_its_gradients,
    check_targets,
    differentiated,
    empty_gradients,
    empty_terms,
    fill_logits,
    finished,
    like_loss,
    loss_of,
    losses_of,
    rounded,
    row_shares,
    targets_in,
    terms_call,
    tiles_of,
)

# Logits held at a time: 32 MB in float32. Fewer rows make the products inefficient, more leave the
# caches without saving any.
CHUNK_ELEMENTS, MIN_ROWS, MAX_ROWS = 1 << 23, 16, 256


def rows_at_a_time(rows: int, vocabulary: int) -> int:
    """How many rows of logits to hold."""
    return max(MIN_ROWS, min(MAX_ROWS, CHUNK_ELEMENTS // vocabulary, rows))


def run(call: HeadLossCall) -> Tensor:
    """The library's products on some rows at a time.

    Losses of rows have gradients of their own, which are not known beside the loss; those of
    float16 would vanish before a loss scale is applied. Both take the general way.
    """
    is_half = call.h[0].dtype == torch.float16
    if (call.reduction == "none" or is_half) and differentiated(call):
        check_targets(call)
        return loss_of(losses_of(logit_tiles.run(terms_call(call)), call), call)
    return _run(rounded(call))


@operator(like_loss)
def linear_cross_entropy_chunked(
    call: HeadLossCall, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of their sum or mean."""
    check_targets(call)
    targets, smoothing = call.targets, call.label_smoothing
    if not any(needs):
        terms = logit_tiles.linear_lse_chunked(*terms_call(call))
        return losses_of(terms, call), empty_gradients(call, needs)
    n, vocabulary, wide = len(targets), call.weight[0].shape[0], wide_dtype(call.h[0].dtype)
    gradients = empty_gradients(call, needs, of_others=wide)
    lse, target_logit, means = terms = empty_terms(terms_call(call))
    here, index = targets_in(targets, slice(0, vocabulary))
    share = row_shares(call, wide)
    on_target = torch.where(here, (smoothing - 1) * share, 0)[:, None]
    for rows, words, z in tiles_of(call, rows_at_a_time(n, vocabulary), vocabulary, wide):
        fill_logits(z, call, rows, words, call.bias)
        target_logit[rows] = z.gather(1, index[rows]).squeeze(1)
        if smoothing > 0:
            torch.mean(z, 1, out=means[rows])
        pivot = z.amax(1)
        # A row of infinities has no pivot that would leave numbers.
        pivot = torch.where(pivot.isfinite(), pivot, 0)
        sums = z.sub_(pivot[:, None]).exp_().sum(1)
        lse[rows] = pivot + sums.log()
        # Of dz = factor · z; a row that counts nothing has none. In others a 0, which is a rounded
        # number as every other, would leave nothing to divide the target's part by.
        of_lse = 1 + 2 * call.z_loss * lse[rows]
        of_lse = torch.where(of_lse == 0, torch.finfo(z.dtype).eps, of_lse)
        factor = share[rows] * of_lse / sums
        inverse = torch.where(factor == 0, 0, 1 / factor)[:, None]
        if smoothing > 0:
            z.sub_(inverse * (share[rows, None] * (smoothing / vocabulary)))
        z.scatter_add_(1, index[rows], inverse * on_target[rows])
        add_products(call, gradients, needs, rows, words, z, factor)
    return losses_of(terms, call), finished(call, gradients)


_run = beside_its_gradients(
    "linear_cross_entropy", HeadLossCall, linear_cross_entropy_chunked, loss_of
)

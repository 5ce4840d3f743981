"""`linear_cross_entropy` with its gradients made beside the loss, some rows of logits at a time.

The gradient of a row's logits is at hand when its loss is, so making the products with it there
saves keeping the logits or making them again: three products, where recomputing takes four. The
gradient of the loss, one number, is multiplied in afterwards. Torch alone is needed. In half
precision logits and sums over rows are float32, and the gradient of the logits is rounded for the
products with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgrow.kernels.calls import HeadLossCall
from fastgrow.ops.core.dtypes import wide_dtype
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads import logit_tiles
from fastgrow.ops.heads.heads import (
    add_products,
    check_targets,
    differentiated,
    empty_gradients,
    empty_terms,
    fill_logits,
    finished,
    fused_loss,
    like_loss,
    losses_of,
    parts_of,
    reduced,
    rounded,
    row_shares,
    targets_in,
    terms_call,
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
        terms = logit_tiles.run(terms_call(call))
        losses = losses_of(terms, call)
        return reduced(losses, call.targets, call.ignore_index, call.reduction)
    return _run(rounded(call))


@operator(like_loss)
def linear_cross_entropy_chunked(
    call: HeadLossCall, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of their sum or mean."""
    check_targets(call)
    targets, smoothing = call.targets, call.label_smoothing
    if not any(needs):
        terms = logit_tiles.terms(terms_call(call))
        return losses_of(terms, call), empty_gradients(call, needs)
    vocabulary, wide = call.weight[0].shape[0], wide_dtype(call.h[0].dtype)
    gradients = empty_gradients(call, needs, of_others=wide)
    lse, target_logit, means = terms = empty_terms(terms_call(call))
    everything = slice(0, vocabulary)
    here, index = targets_in(targets, everything)
    share = row_shares(call, wide)
    on_target = torch.where(here, (smoothing - 1) * share, 0)[:, None]
    for rows, z in _chunks(call, wide):
        target_logit[rows] = z.gather(1, index[rows]).squeeze(1)
        if smoothing > 0:
            torch.mean(z, 1, out=means[rows])
        sums, lse[rows] = _exponentials(z)
        # Of dz = factor · z; a row that counts nothing has none. In others a 0, which is a rounded
        # number as every other, would leave nothing to divide the target's part by.
        of_lse = 1 + 2 * call.z_loss * lse[rows]
        of_lse = torch.where(of_lse == 0, torch.finfo(z.dtype).eps, of_lse)
        factor = share[rows] * of_lse / sums
        inverse = torch.where(factor == 0, 0, 1 / factor)[:, None]
        if smoothing > 0:
            z.sub_(inverse * (share[rows, None] * (smoothing / vocabulary)))
        z.scatter_add_(1, index[rows], inverse * on_target[rows])
        add_products(call, gradients, needs, rows, everything, z, factor)
    return losses_of(terms, call), finished(call, gradients)


_run = fused_loss(linear_cross_entropy_chunked)


def _chunks(call: HeadLossCall, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their logits in memory that the next ones take over."""
    h, vocabulary = call.h[0], call.weight[0].shape[0]
    size = rows_at_a_time(h.shape[0], vocabulary)
    buffer = h.new_empty(size, vocabulary, dtype=dtype)
    for rows in parts_of(h.shape[0], size):
        z = buffer[: rows.stop - rows.start]
        fill_logits(z, call, rows, slice(0, vocabulary), call.bias)
        yield rows, z


def _exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """Logits to exp(z − pivot) in place; their sums, and the log-sum-exp of the logits."""
    pivot = z.amax(1)
    # A row of infinities has no pivot that would leave numbers.
    pivot = torch.where(pivot.isfinite(), pivot, 0)
    sums = z.sub_(pivot[:, None]).exp_().sum(1)
    return sums, pivot + sums.log()

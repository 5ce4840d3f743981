"""Loss and gradients from cuBLAS matrix products, with one Triton kernel between them.

logits of some rows  →  (kernel) losses and dz  →  dh of these rows, dW += dzᵀ · h

dz overwrites the logits if they have its dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import HeadLossCall
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads.heads import (
    accumulate,
    add_products,
    check_targets_in_range,
    empty_gradients,
    finished,
    in_autocast,
    like_loss,
    loss_of,
    loss_with_gradients,
    part,
    row_shares,
    tiles_of,
)

# If all weights are frozen, this many bytes of logits stay in the L2 cache between their product,
# the kernel and the next product; with fewer rows multiprocessors would be idle.
CACHED_BYTES, MIN_ROWS = 32 << 20, 256
# The float32 sum for dW is read and written once for each part of the rows.
PARTS_OF_ROWS = 4


def rows_at_a_time(rows: int, vocabulary: int, itemsize: int, needs_weight: bool) -> int:
    """Return the number of rows whose logits, of `itemsize` bytes each, are stored at a time."""
    least = max(MIN_ROWS, CACHED_BYTES // (vocabulary * itemsize) // 128 * 128)
    if needs_weight:
        least = max(least, -(-rows // PARTS_OF_ROWS))
    return min(least, rows)


def linear_cross_entropy(call: HeadLossCall) -> Tensor:
    """Compute loss and gradients together; under autocast everything is in its dtype."""
    return _run(in_autocast(call))


@operator(like_loss)
def linear_cross_entropy_cublas(
    call: HeadLossCall, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of their sum or mean."""
    from fastgrow.kernels.logit_loss import fill_losses

    check_targets_in_range(call)
    h, count = call.h[0], len(call.h)
    n, vocabulary, dtype = h.shape[0], call.weight[0].shape[0], h.dtype
    # A half-precision sum of several heads' products would be rounded after each of them.
    of_logits = torch.float32 if count > 1 else dtype
    itemsize = of_logits.itemsize + (0 if of_logits == dtype else dtype.itemsize)
    size = rows_at_a_time(n, vocabulary, itemsize, any(needs[count : 2 * count]))
    losses = h.new_empty(n, dtype=torch.float32)
    # In half precision a sum over parts of the rows needs a wider dtype than the gradient's.
    gradients = empty_gradients(call, needs, of_others=torch.float32 if size < n else None)
    share = row_shares(call, torch.float32)
    separate = any(needs) and of_logits != dtype
    narrow = h.new_empty(size if separate else 0, vocabulary)
    for rows, words, z in tiles_of(call, size, vocabulary, of_logits):
        for k, (x, weight) in enumerate(zip(call.h, call.weight, strict=True)):
            accumulate(z, part(x, rows), weight.T, first=k == 0)
        dz = part(narrow, slice(0, len(z))) if separate else z
        fill_losses(call, rows, z, share, losses, dz if any(needs) else None)
        if any(needs):
            add_products(call, gradients, needs, rows, words, dz)
    return losses, finished(call, gradients)


_run = loss_with_gradients(
    "linear_cross_entropy", HeadLossCall, linear_cross_entropy_cublas, loss_of
)

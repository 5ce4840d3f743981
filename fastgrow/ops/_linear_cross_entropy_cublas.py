"""Loss and gradients from the library's products and one kernel between them.

logits of some rows  →  (kernel) losses and dz  →  dh of these rows, dW += dzᵀ · h

dz takes the place of the logits where they have its dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_cross_entropy_fused import shares
from fastgrow.ops._linear_lse_autograd import empty_gradients
from fastgrow.ops.core.products import accumulate

# Where no weight trains, this many bytes of logits stay in the L2 cache between their product, the
# kernel and the next product; products of fewer rows would leave multiprocessors idle.
CACHED_BYTES, MIN_ROWS = 32 << 20, 256
# A sum for dW in float32 is read and written once for each part of the rows.
PARTS_OF_ROWS = 4


def rows_at_a_time(heads: Heads, needs_weight: bool) -> int:
    """How many rows of logits to hold."""
    wide = logits_dtype(heads)
    itemsize = wide.itemsize + (heads.dtype.itemsize if wide != heads.dtype else 0)
    cached = CACHED_BYTES // (heads.vocabulary * itemsize) // 128 * 128
    rows = max(MIN_ROWS, cached)
    if needs_weight:
        rows = max(rows, -(-heads.rows // PARTS_OF_ROWS))
    return min(rows, heads.rows)


def logits_dtype(heads: Heads) -> torch.dtype:
    """A sum of several heads' products in half precision would be rounded with each of them."""
    return torch.float32 if len(heads.h) > 1 else heads.dtype


def fused(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of their sum or mean."""
    from fastgrow.kernels.logit_loss import fill_losses

    n, count = heads.rows, len(heads.h)
    needs_weight = any(needs[count : 2 * count])
    losses = heads.h[0].new_empty(n, dtype=torch.float32)
    gradients = empty_gradients(heads, needs)
    if n == 0:
        for gradient in gradients:
            gradient.zero_()
        return losses, gradients
    share = shares(targets, ignore_index, mean, torch.float32)
    targets = targets.contiguous()
    # In half precision a sum over parts of the rows needs a wider place than the gradient's.
    size = rows_at_a_time(heads, needs_weight)
    wide = torch.float32 if size < n else heads.dtype
    sums = {
        k: torch.empty_like(gradients[k], dtype=wide) for k in range(count, 2 * count) if needs[k]
    }
    bias_sum = None
    logits = heads.h[0].new_empty(size, heads.vocabulary, dtype=logits_dtype(heads))
    gradient = logits
    if any(needs) and logits.dtype != heads.dtype:
        gradient = heads.h[0].new_empty(size, heads.vocabulary)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z, dz = logits[: rows.stop - start], gradient[: rows.stop - start]
        for k, (h, weight) in enumerate(zip(heads.h, heads.weight, strict=True)):
            accumulate(z, h[rows], weight.T, first=k == 0)
        fill_losses(
            *(z, heads.bias, targets[rows], share[rows], losses[rows]),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            gradient=dz if any(needs) else None,
        )
        for k in range(count):
            if needs[k]:
                torch.mm(dz, heads.weight[k], out=gradients[k][rows])
        for k, total in sums.items():
            accumulate(total, dz.T, heads.h[k - count][rows], first=start == 0)
        if heads.bias is not None and needs[-1]:
            part = dz.sum(0, dtype=torch.float32)
            bias_sum = part if bias_sum is None else bias_sum + part
    for k, total in sums.items():
        gradients[k] = total.to(heads.dtype)
    if bias_sum is not None:
        gradients[-1] = bias_sum.to(heads.dtype)
    return losses, gradients

"""`linear_lse_gather` by the library's products, some rows of logits at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgrow.ops import _linear_lse_autograd
from fastgrow.ops._dispatch import Verdict
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_lse_autograd import empty_gradients, empty_terms
from fastgrow.ops._linear_lse_triton import MAX_HEADS
from fastgrow.ops._products import accumulate

# Logits held at a time: 32 MB in float32. Fewer rows make the products inefficient, more leave the
# caches without saving any.
CHUNK_ELEMENTS, MIN_ROWS, MAX_ROWS = 1 << 23, 16, 256
FEW_ELEMENTS = 1 << 21  # logits that are a chunk or two in any case


def can_serve(heads: Heads, targets: Tensor, with_mean: bool) -> Verdict:
    """The verifier. Logits in memory are rounded to their dtype, which has to be a wide one."""
    if heads.dtype not in (torch.float32, torch.float64):
        many = f"; the formula takes more than {MAX_HEADS} heads, with all logits in memory"
        left = many if len(heads.h) > MAX_HEADS else ""
        return False, f"it serves float32 and float64, not {heads.dtype}{left}"
    return True, ""


def pays(heads: Heads, targets: Tensor, with_mean: bool) -> Verdict:
    """Where it saves memory, with products as fast as the formula's."""
    if heads.dtype == torch.float32 and heads.autocast_dtype != torch.float32:
        return False, "its products would be float32, slower than autocast's"
    return saves(heads)


def saves(heads: Heads) -> Verdict:
    """On a CPU few logits are sooner made at once, and take little memory."""
    if heads.device.type == "cpu" and heads.rows * heads.vocabulary <= FEW_ELEMENTS:
        return False, f"it saves nothing to speak of on at most {FEW_ELEMENTS} logits"
    return True, ""


def linear_lse_gather_vendor(
    heads: Heads, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some rows, their sums, and the next rows in the same memory.

    Autocast rounds h and weight here as it does for the formula, but not the logits.
    """
    heads = heads.rounded()
    with torch.autocast(heads.device.type, enabled=False):
        return _linear_lse_autograd.terms("chunked", heads, targets, with_mean)


def chunks(heads: Heads) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their logits in memory that the next ones take over."""
    n, vocabulary = heads.rows, heads.vocabulary
    size = max(MIN_ROWS, min(MAX_ROWS, CHUNK_ELEMENTS // vocabulary, n))
    buffer = heads.h[0].new_empty(size, vocabulary)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = buffer[: rows.stop - rows.start]
        if heads.bias is None:
            torch.mm(heads.h[0][rows], heads.weight[0].T, out=z)
        else:
            torch.addmm(heads.bias, heads.h[0][rows], heads.weight[0].T, out=z)
        for h, weight in zip(heads.h[1:], heads.weight[1:], strict=True):
            z.addmm_(h[rows], weight.T)
        yield rows, z


def exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """Logits to exp(z − pivot) in place; their sums, and the log-sum-exp of the logits."""
    pivot = z.amax(1)
    # A row of infinities has no pivot that would leave numbers.
    pivot = torch.where(pivot.isfinite(), pivot, 0)
    sums = z.sub_(pivot[:, None]).exp_().sum(1)
    return sums, pivot + sums.log()


def add_products(
    heads: Heads,
    gradients: list[Tensor],
    needs: list[bool],
    rows: slice,
    dz: Tensor,
    factor: Tensor | None = None,
) -> None:
    """What the logits' gradient of these rows adds to each gradient that is needed.

    Args:
        factor: [rows], still to be multiplied into `dz`; multiplied into the smaller h and dh.
    """
    count, first = len(heads.h), rows.start == 0
    for k, (h, weight) in enumerate(zip(heads.h, heads.weight, strict=True)):
        if needs[k]:
            dh = torch.mm(dz, weight, out=gradients[k][rows])
            if factor is not None:
                dh.mul_(factor[:, None])
        if needs[count + k]:
            part = h[rows] if factor is None else h[rows] * factor[:, None]
            accumulate(gradients[count + k], dz.T, part, first=first)
    if heads.bias is not None and needs[-1]:
        total = dz.sum(0) if factor is None else dz.T @ factor
        gradients[-1].copy_(total if first else gradients[-1] + total)


def targets_here(targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Which targets have a logit, and an index that is safe to use for the others too."""
    here = (targets >= 0) & (targets < vocabulary)
    return here, torch.where(here, targets, 0).long()[:, None]


def _forward(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    lse, target_logit, mean = empty_terms(heads.h[0], with_mean)
    here, index = targets_here(targets, heads.vocabulary)
    for rows, z in chunks(heads):
        target_logit[rows] = torch.where(here[rows], z.gather(1, index[rows]).squeeze(1), 0)
        if with_mean:
            torch.mean(z, 1, out=mean[rows])
        lse[rows] = exponentials(z)[1]
    return lse, target_logit, mean


def _backward(
    heads: Heads,
    targets: Tensor,
    lse: Tensor,
    dlse: Tensor,
    dtarget: Tensor,
    dmean: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    gradients = empty_gradients(heads, needs)
    here, index = targets_here(targets, heads.vocabulary)
    on_target = torch.where(here, dtarget, 0)[:, None]
    pivot = torch.where(lse == float("-inf"), 0, lse)[:, None]
    for rows, z in chunks(heads):
        dz = z.sub_(pivot[rows]).exp_().mul_(dlse[rows, None])
        if dmean is not None:
            dz.add_(dmean[rows, None] / heads.vocabulary)
        dz.scatter_add_(1, index[rows], on_target[rows])
        add_products(heads, gradients, needs, rows, dz)
    return clear_without_rows(heads, gradients)


def clear_without_rows(heads: Heads, gradients: list[Tensor]) -> list[Tensor]:
    """Gradients are sums over the rows, and nothing has been added where there are none."""
    if heads.rows == 0:
        for gradient in gradients:
            gradient.zero_()
    return gradients


_linear_lse_autograd.register("chunked", _forward, _backward)

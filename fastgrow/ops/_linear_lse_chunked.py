"""`linear_lse_gather` by the library's products, a tile of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops import _linear_lse_autograd, _logit_tiles
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_lse_autograd import empty_gradients
from fastgrow.ops._linear_lse_triton import MAX_HEADS
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.products import accumulate

FEW_ELEMENTS = 1 << 21  # logits that are a tile in any case


def can_serve(heads: Heads, targets: Tensor, with_mean: bool) -> Answer:
    """The verifier. Logits in memory are rounded to their dtype, which has to be a wide one."""
    if heads.dtype not in (torch.float32, torch.float64):
        many = f"; the formula takes more than {MAX_HEADS} heads, with all logits in memory"
        left = many if len(heads.h) > MAX_HEADS else ""
        return False, f"it serves float32 and float64, not {heads.dtype}{left}"
    return True, ""


def pays(heads: Heads, targets: Tensor, with_mean: bool) -> Answer:
    """Where it saves memory, with products as fast as the formula's."""
    if heads.dtype == torch.float32 and heads.autocast_dtype != torch.float32:
        return False, "its products would be float32, slower than autocast's"
    return saves(heads)


def saves(heads: Heads) -> Answer:
    """On a CPU few logits are sooner made at once, and take little memory."""
    if heads.device.type == "cpu" and heads.rows * heads.vocabulary <= FEW_ELEMENTS:
        return False, f"it saves nothing to speak of on at most {FEW_ELEMENTS} logits"
    return True, ""


def linear_lse_gather_vendor(
    heads: Heads, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some rows and columns, their sums, and the next ones in the same memory.

    Autocast rounds h and weight here as it does for the formula, but not the logits.
    """
    heads = heads.rounded()
    with torch.autocast(heads.device.type, enabled=False):
        return _linear_lse_autograd.terms("chunked", heads, targets, with_mean)


def add_products(
    heads: Heads,
    gradients: list[Tensor],
    needs: list[bool],
    rows: slice,
    columns: slice,
    dz: Tensor,
    factor: Tensor | None = None,
) -> None:
    """What the gradient of these rows' and columns' logits adds to each gradient that is needed.

    Args:
        factor: [rows], still to be multiplied into `dz`; multiplied into the smaller h and dh.
    """
    count, first = len(heads.h), rows.start == 0
    for k, (h, weight) in enumerate(zip(heads.h, heads.weight, strict=True)):
        if needs[k]:
            dh = gradients[k][rows]
            accumulate(dh, dz, weight[columns], first=columns.start == 0)
            if factor is not None and columns.stop == heads.vocabulary:
                dh.mul_(factor[:, None])
        if needs[count + k]:
            part = h[rows] if factor is None else h[rows] * factor[:, None]
            accumulate(gradients[count + k][columns], dz.T, part, first=first)
    if heads.bias is not None and needs[-1]:
        total = dz.sum(0) if factor is None else dz.T @ factor
        of_bias = gradients[-1][columns]
        of_bias.copy_(total if first else of_bias + total)


def _forward(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _logit_tiles.terms(heads, targets, with_mean)


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
    of_each = None if dmean is None else dmean / heads.vocabulary
    given = _logit_tiles.RowGradients(lse, dlse, dtarget, of_each)
    for tile, dz in _logit_tiles.gradients(heads, targets, given):
        add_products(heads, gradients, needs, tile.rows, tile.columns, dz)
    return clear_without_rows(heads, gradients)


def clear_without_rows(heads: Heads, gradients: list[Tensor]) -> list[Tensor]:
    """Gradients are sums over the rows, and nothing has been added where there are none."""
    if heads.rows == 0:
        for gradient in gradients:
            gradient.zero_()
    return gradients


_linear_lse_autograd.register("chunked", _forward, _backward)

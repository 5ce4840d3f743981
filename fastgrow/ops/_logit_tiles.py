"""A head's logits, one tile after the other: what they add to each row's terms, and their gradient.

A tile is as many rows as make the products efficient, by as many columns of the vocabulary as keep
it in the caches, where its exponentials are taken next. On a CPU the compiled extension takes them
in one pass (csrc/cpu/logit_tile.cpp); without it, and elsewhere, torch's own passes do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_lse_autograd import empty_terms

# Logits of a tile: 8 MB in float32 on a CPU. A GPU has no use for tiles that small.
TILE_ELEMENTS, TILE_ELEMENTS_ON_GPU, MAX_ROWS = 1 << 21, 1 << 23, 2048


@dataclass(frozen=True)
class Tile:
    """Logits [rows, columns] of some rows and columns, in memory that the next tile takes over.

    Args:
        rows: of h.
        columns: of the vocabulary.
        z: their logits; without the bias, which is still to be added where there is one.
    """

    rows: slice
    columns: slice
    z: Tensor
    bias: Tensor | None


def tiles(heads: Heads) -> Iterator[Tile]:
    """All columns of the first rows, then those of the next."""
    n, vocabulary = heads.rows, heads.vocabulary
    height = max(1, min(MAX_ROWS, n))
    elements = TILE_ELEMENTS if heads.device.type == "cpu" else TILE_ELEMENTS_ON_GPU
    width = max(1, min(vocabulary, elements // height))
    memory = heads.h[0].new_empty(height * width)
    bias = None if heads.bias is None else heads.bias.contiguous()
    for top in range(0, n, height):
        rows = slice(top, min(top + height, n))
        for left in range(0, vocabulary, width):
            columns = slice(left, min(left + width, vocabulary))
            shape = rows.stop - rows.start, columns.stop - columns.start
            z = memory[: shape[0] * shape[1]].view(shape)
            torch.mm(heads.h[0][rows], heads.weight[0][columns].T, out=z)
            for h, weight in zip(heads.h[1:], heads.weight[1:], strict=True):
                z.addmm_(h[rows], weight[columns].T)
            yield Tile(rows, columns, z, None if bias is None else bias[columns])


def terms(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target_logit and the mean logit or an empty tensor, as `linear_lse_gather` has them."""
    serves = _native_serves(heads)
    return (_native_terms if serves else _torch_terms)(heads, targets, with_mean)


def _native_serves(heads: Heads) -> bool:
    return _native.CPU.loaded and heads.device.type == "cpu" and heads.dtype == torch.float32


def _native_terms(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    # The largest logit, the sum of exponentials relative to it, and the plain sum.
    sums = torch.tensor([float("-inf"), 0.0, 0.0], dtype=torch.float64).repeat(heads.rows, 1)
    target_logit = heads.h[0].new_zeros(heads.rows)
    targets = targets.long().contiguous()
    for tile in tiles(heads):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            *(tile.z, tile.bias, targets[tile.rows], tile.columns.start),
            *(sums[tile.rows], target_logit[tile.rows]),
        )
    top, mass, total = sums.unbind(1)
    lse = torch.where(top.isfinite(), top, 0) + mass.log()
    mean = total / heads.vocabulary if with_mean else total[:0]
    return lse.float(), target_logit, mean.float()


def _torch_terms(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    lse, target_logit, mean = empty_terms(heads.h[0], with_mean)
    target_logit.zero_()
    mean.zero_()
    parts: list[Tensor] = []
    for tile in tiles(heads):
        rows, z = tile.rows, _with_bias(tile)
        here, index = targets_in(targets[rows], tile.columns)
        target_logit[rows] += torch.where(here, z.gather(1, index).squeeze(1), 0)
        if with_mean:
            mean[rows] += z.sum(1) / heads.vocabulary
        parts.append(z.logsumexp(1))
        if tile.columns.stop == heads.vocabulary:
            lse[rows] = torch.stack(parts).logsumexp(0)
            parts.clear()
    return lse, target_logit, mean


def _with_bias(tile: Tile) -> Tensor:
    return tile.z if tile.bias is None else tile.z.add_(tile.bias)


def targets_in(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in a tile, and an index [rows, 1] that is safe for the others too."""
    here = (targets >= columns.start) & (targets < columns.stop)
    return here, torch.where(here, targets - columns.start, 0).long()[:, None]


@dataclass(frozen=True)
class RowGradients:
    """What each row's logits get: of_lse · softmax + of_each, and of_target more at the target.

    Args:
        lse: [N].
        of_lse: [N].
        of_target: [N].
        of_each: [N] or None.
    """

    lse: Tensor
    of_lse: Tensor
    of_target: Tensor
    of_each: Tensor | None


def gradients(heads: Heads, targets: Tensor, given: RowGradients) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles with the logits' gradient in the place of their logits."""
    is_native = _native_serves(heads)
    targets = targets.long().contiguous()
    for tile in tiles(heads):
        rows = tile.rows
        each = None if given.of_each is None else given.of_each[rows]
        terms = given.lse[rows], given.of_lse[rows], given.of_target[rows], each
        if is_native:
            torch.ops.fastgrow_native.logit_tile_gradient_(
                tile.z, tile.bias, targets[rows], tile.columns.start, *terms
            )
        else:
            _torch_gradient(tile, targets[rows], *terms)
        yield tile, tile.z


def _torch_gradient(
    tile: Tile,
    targets: Tensor,
    lse: Tensor,
    of_lse: Tensor,
    of_target: Tensor,
    of_each: Tensor | None,
) -> None:
    # A row without any mass has no gradient through it.
    pivot = torch.where(lse == float("-inf"), 0, lse)[:, None]
    dz = _with_bias(tile).sub_(pivot).exp_().mul_(of_lse[:, None])
    if of_each is not None:
        dz.add_(of_each[:, None])
    here, index = targets_in(targets, tile.columns)
    dz.scatter_add_(1, index, torch.where(here, of_target, 0)[:, None])

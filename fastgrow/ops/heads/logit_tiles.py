"""`linear_lse_gather` by the library's products, one tile of logits after the other.

A tile is as many rows as make the products efficient, by as many columns of the vocabulary as keep
it in the caches, where its exponentials are taken next. On a CPU the compiled extension takes them
in one pass (csrc/cpu/logit_tile.cpp); without it, and elsewhere, torch's own passes do. Logits of
half-precision heads are widened to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.kernels.calls import LseCall, LseGradientCall
from fastgrow.ops.core.dtypes import wide_dtype, widened
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads.heads import (
    HeadsCall,
    add_products,
    differentiable_terms,
    differentiated,
    empty_gradients,
    empty_terms,
    fill_logits,
    finished,
    like_gradients,
    parts_of,
    rounded,
    targets_in,
)

# Logits of a tile: 8 MB in float32 on a CPU. A GPU has no use for tiles that small.
TILE_ELEMENTS, TILE_ELEMENTS_ON_GPU, MAX_ROWS = 1 << 21, 1 << 23, 2048


def run(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some rows and columns, their sums, and the next ones in the same memory.

    Autocast rounds h and weight here as it does for the formula, but not the logits.
    """
    call = rounded(call)
    with torch.autocast(call.h[0].device.type, enabled=False):
        return (_differentiable if differentiated(call) else linear_lse_chunked)(*call)


@operator(empty_terms)
def linear_lse_chunked(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target_logit and the mean logit or an empty tensor."""
    return terms(call)


@operator(like_gradients)
def linear_lse_chunked_backward(call: LseGradientCall) -> list[Tensor]:
    """Gradients in the order of `needs`: each h, each weight, the bias."""
    wide = wide_dtype(call.h[0].dtype)
    found = empty_gradients(call, call.needs, of_h=wide, of_others=wide)
    for tile in gradients(call):
        add_products(call, found, call.needs, tile.rows, tile.columns, tile.z)
    return finished(call, found)


_differentiable = differentiable_terms(linear_lse_chunked, linear_lse_chunked_backward)


class Tile(NamedTuple):
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


def tiles(call: HeadsCall) -> Iterator[Tile]:
    """All columns of the first rows, then those of the next."""
    h = call.h[0]
    n, vocabulary = h.shape[0], call.weight[0].shape[0]
    height = max(1, min(MAX_ROWS, n))
    elements = TILE_ELEMENTS if h.device.type == "cpu" else TILE_ELEMENTS_ON_GPU
    width = max(1, min(vocabulary, elements // height))
    memory = h.new_empty(height * width, dtype=wide_dtype(h.dtype))
    bias = None if call.bias is None else widened(call.bias).contiguous()
    for rows in parts_of(n, height):
        for columns in parts_of(vocabulary, width):
            shape = rows.stop - rows.start, columns.stop - columns.start
            z = memory[: shape[0] * shape[1]].view(shape)
            fill_logits(z, call, rows, columns)
            yield Tile(rows, columns, z, None if bias is None else bias[columns])


def terms(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target_logit and the mean logit or an empty tensor, as `linear_lse_gather` has them."""
    targets = call.targets.long().contiguous()
    return (_native_terms if _native_serves(call) else _torch_terms)(call, targets)


def _native_serves(call: HeadsCall) -> bool:
    h = call.h[0]
    return _native.CPU.loaded and h.device.type == "cpu" and h.dtype != torch.float64


def _native_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The largest logit, the sum of exponentials relative to it, and the plain sum.
    n = len(targets)
    sums = torch.tensor([float("-inf"), 0.0, 0.0], dtype=torch.float64).repeat(n, 1)
    target_logit = torch.zeros(n)
    for tile in tiles(call):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            *(tile.z, tile.bias, targets[tile.rows], tile.columns.start),
            *(sums[tile.rows], target_logit[tile.rows]),
        )
    top, mass, total = sums.unbind(1)
    lse = torch.where(top.isfinite(), top, 0) + mass.log()
    mean = total / call.weight[0].shape[0] if call.with_mean else total[:0]
    return lse.float(), target_logit, mean.float()


def _torch_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = call.weight[0].shape[0]
    lse, target_logit, mean = empty_terms(call)
    target_logit.zero_()
    mean.zero_()
    parts: list[Tensor] = []
    for tile in tiles(call):
        rows, z = tile.rows, _with_bias(tile)
        here, index = targets_in(targets[rows], tile.columns)
        target_logit[rows] += torch.where(here, z.gather(1, index).squeeze(1), 0)
        if call.with_mean:
            mean[rows] += z.sum(1) / vocabulary
        parts.append(z.logsumexp(1))
        if tile.columns.stop == vocabulary:
            lse[rows] = torch.stack(parts).logsumexp(0)
            parts.clear()
    return lse, target_logit, mean


def _with_bias(tile: Tile) -> Tensor:
    return tile.z if tile.bias is None else tile.z.add_(tile.bias)


def gradients(call: LseGradientCall) -> Iterator[Tile]:
    """Tiles with the logits' gradient in the place of their logits."""
    is_native = _native_serves(call)
    targets = call.targets.long().contiguous()
    of_each = None if call.dmean is None else call.dmean / call.weight[0].shape[0]
    for tile in tiles(call):
        rows = tile.rows
        each = None if of_each is None else of_each[rows]
        given = targets[rows], call.lse[rows], call.dlse[rows], call.dtarget[rows], each
        if is_native:
            torch.ops.fastgrow_native.logit_tile_gradient_(
                tile.z, tile.bias, given[0], tile.columns.start, *given[1:]
            )
        else:
            _torch_gradient(tile, *given)
        yield tile


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

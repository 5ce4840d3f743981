"""`linear_lse_gather` by the library's products, one tile of logits after the other.

A tile is as many rows as make the products efficient, by as many columns of the vocabulary as keep
it in the caches, where its exponentials are taken next. On a CPU the compiled extension takes them
in one pass (csrc/cpu/logit_tile.cpp); without it, and elsewhere, torch's own passes do. Logits of
half-precision heads are widened to float32.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    rounded,
    targets_in,
    tiles_of,
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


def tiles(call: HeadsCall) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Rows, columns, their logits less the bias, and the bias of the columns where there is one."""
    h = call.h[0]
    height = max(1, min(MAX_ROWS, h.shape[0]))
    elements = TILE_ELEMENTS if h.device.type == "cpu" else TILE_ELEMENTS_ON_GPU
    width = max(1, min(call.weight[0].shape[0], elements // height))
    bias = None if call.bias is None else widened(call.bias).contiguous()
    for rows, columns, z in tiles_of(call, height, width, wide_dtype(h.dtype)):
        fill_logits(z, call, rows, columns)
        yield rows, columns, z, None if bias is None else bias[columns]


@operator(empty_terms)
def linear_lse_chunked(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target_logit and the mean logit or an empty tensor."""
    targets = call.targets.long().contiguous()
    return (_native_terms if _native_serves(call) else _torch_terms)(call, targets)


def _native_serves(call: HeadsCall) -> bool:
    h = call.h[0]
    return _native.CPU.loaded and h.device.type == "cpu" and h.dtype != torch.float64


def _native_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The largest logit, the sum of exponentials relative to it, and the plain sum.
    sums = torch.tensor([float("-inf"), 0.0, 0.0], dtype=torch.float64).repeat(len(targets), 1)
    target_logit = torch.zeros(len(targets))
    for rows, columns, z, bias in tiles(call):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            z, bias, targets[rows], columns.start, sums[rows], target_logit[rows]
        )
    top, mass, total = sums.unbind(1)
    lse = torch.where(top.isfinite(), top, 0) + mass.log()
    mean = total / call.weight[0].shape[0] if call.with_mean else total[:0]
    return lse.float(), target_logit, mean.float()


def _torch_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = call.weight[0].shape[0]
    lse, target_logit, mean = (x.zero_() for x in empty_terms(call))
    parts: list[Tensor] = []
    for rows, columns, z, bias in tiles(call):
        z = _with_bias(z, bias)
        here, index = targets_in(targets[rows], columns)
        target_logit[rows] += torch.where(here, z.gather(1, index).squeeze(1), 0)
        if call.with_mean:
            mean[rows] += z.sum(1) / vocabulary
        parts.append(z.logsumexp(1))
        if columns.stop == vocabulary:
            lse[rows] = torch.stack(parts).logsumexp(0)
            parts.clear()
    return lse, target_logit, mean


@operator(like_gradients)
def linear_lse_chunked_backward(call: LseGradientCall) -> list[Tensor]:
    """Gradients in the order of `needs`: each h, each weight, the bias."""
    wide = wide_dtype(call.h[0].dtype)
    targets = call.targets.long().contiguous()
    found = empty_gradients(call, call.needs, of_h=wide, of_others=wide)
    of_each = None if call.dmean is None else call.dmean / call.weight[0].shape[0]
    is_native = _native_serves(call)
    gradient_ = torch.ops.fastgrow_native.logit_tile_gradient_ if is_native else _torch_gradient_
    for rows, columns, z, bias in tiles(call):
        each = None if of_each is None else of_each[rows]
        gradient_(
            *(z, bias, targets[rows], columns.start),
            *(call.lse[rows], call.dlse[rows], call.dtarget[rows], each),
        )
        add_products(call, found, call.needs, rows, columns, z)
    return finished(call, found)


_differentiable = differentiable_terms(linear_lse_chunked, linear_lse_chunked_backward)


def _with_bias(z: Tensor, bias: Tensor | None) -> Tensor:
    return z if bias is None else z.add_(bias)


def _torch_gradient_(
    z: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first_column: int,
    lse: Tensor,
    of_lse: Tensor,
    of_target: Tensor,
    of_each: Tensor | None,
) -> None:
    """What the extension's `logit_tile_gradient_` does."""
    # A row without any mass has no gradient through it.
    pivot = torch.where(lse == float("-inf"), 0, lse)[:, None]
    dz = _with_bias(z, bias).sub_(pivot).exp_().mul_(of_lse[:, None])
    if of_each is not None:
        dz.add_(of_each[:, None])
    here, index = targets_in(targets, slice(first_column, first_column + z.shape[1]))
    dz.scatter_add_(1, index, torch.where(here, of_target, 0)[:, None])

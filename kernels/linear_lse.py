"""Launchers of the kernels of `linear_lse_gather`, and their tiles.

The heads' tensors are read in place.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from fastgrow.kernels.calls import LseCall, LseGradientCall
from fastgrow.kernels.common import (
    INTERPRETED,
    as_strided_rows,
    cdiv,
    dot_precision,
    on_device_of,
)
from fastgrow.kernels.linear_lse_kernels import gradient_kernel, lse_kernel, merge_kernel
from fastgrow.kernels.matmul import MatmulTiles
from fastgrow.kernels.tuned import NAMES, capability_of, chosen_once, measured

SMALL = 64  # most rows of a launch that counts as small
# Tiles and rows that the merge kernel reads at a time.
MERGE_TILES, MERGE_ROWS = 64, 32

C = TypeVar("C", LseCall, LseGradientCall)


def readable(call: C) -> C:
    """Return the call with contiguous rows; copies only tensors without."""
    return call._replace(
        h=[as_strided_rows(x) for x in call.h],
        weight=[as_strided_rows(w) for w in call.weight],
        bias=None if call.bias is None else call.bias.contiguous(),
        targets=call.targets.contiguous(),
    )


def forward(call: LseCall, *, tiles: MatmulTiles | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return lse, target logit (0 without a target) and mean logit (empty unless requested)."""
    call = readable(call)
    h, with_mean = call.h[0], call.with_mean
    n, vocabulary = h.shape[0], call.weight[0].shape[0]
    lse, mean = (h.new_empty(size, dtype=torch.float32) for size in (n, n if with_mean else 0))
    target_logit = h.new_zeros(n, dtype=torch.float32)
    if n == 0:
        return lse, target_logit, mean
    tiles = tiles or tiles_for("linear_lse", h)
    count = cdiv(vocabulary, tiles.block_n)
    parts = h.new_empty(2 if with_mean else 1, count, n, dtype=torch.float32)
    with on_device_of(h):
        lse_kernel[(cdiv(n, tiles.block_m) * count,)](
            targets=call.targets,
            parts=parts,
            target_logit=target_logit,
            rows=n,
            vocabulary=vocabulary,
            WITH_MEAN=with_mean,
            **_arguments(call, tiles),
        )
        merge_kernel[(cdiv(n, MERGE_ROWS),)](
            parts, lse, mean, n, vocabulary, count,
            WITH_MEAN=with_mean, TILES=MERGE_TILES, ROWS=MERGE_ROWS, num_warps=4,
        )  # fmt: skip
    return lse, target_logit, mean


def logits_gradient(
    call: LseGradientCall,
    first: int,
    out: Tensor,
    *,
    with_sums: bool,
    tiles: MatmulTiles | None = None,
) -> Tensor | None:
    """Write dz of the words from `first` on to `out` [N, words], whose rows are contiguous.

    Args:
        call: result of `readable`.

    Returns:
        The sums of dz over the rows, [words] in fp32, with `with_sums`; otherwise None.
    """
    n, words = out.shape
    tiles = tiles or tiles_for("linear_lse_gradient", call.h[0])
    blocks = cdiv(n, tiles.block_m)
    sums = out.new_empty(blocks, words, dtype=torch.float32) if with_sums else None
    with on_device_of(out):
        gradient_kernel[(blocks * cdiv(words, tiles.block_n),)](
            targets=call.targets,
            lse=call.lse,
            dlse=call.dlse,
            dtarget=call.dtarget,
            dmean=call.dmean,
            out=out,
            sums=sums,
            out_stride=out.stride(0),
            rows=n,
            first=first,
            words=words,
            vocabulary=call.weight[0].shape[0],
            **_arguments(call, tiles),
        )
    return None if sums is None else sums.sum(0)


def _arguments(call: LseCall | LseGradientCall, tiles: MatmulTiles) -> dict[str, Any]:
    """Return both kernels' arguments for the heads and the tiles."""
    h, weight = tuple(call.h), tuple(call.weight)
    widths = tuple(x.shape[1] for x in h)
    return {
        "hs": h,
        "weights": weight,
        "bias": call.bias,
        "h_strides": tuple(x.stride(0) for x in h),
        "weight_strides": tuple(w.stride(0) for w in weight),
        "widths": widths,
        "HEADS": len(h),
        "WHOLE": all(width % tiles.block_k == 0 for width in widths),
        "PRECISION": dot_precision(h[0].dtype),
        "INTERPRETED": INTERPRETED,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "GROUP_M": tiles.group_m,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def key(dtype: torch.dtype, rows: int) -> str:
    """Return the key of measured tiles; products of few rows are limited by reading the weight."""
    return f"{NAMES[dtype]}/N={SMALL if rows <= SMALL else 8192}"


def tiles_for(kernel: str, h: Tensor) -> MatmulTiles:
    """Return the measured or default tiles of `linear_lse` or `linear_lse_gradient`."""
    return _tiles(kernel, h.dtype, SMALL if h.shape[0] <= SMALL else SMALL + 1, h.device)


@chosen_once
def _tiles(kernel: str, dtype: torch.dtype, rows: int, device: torch.device) -> MatmulTiles:
    found = measured(kernel, key(dtype, rows), device, MatmulTiles)
    return found or default_tiles(kernel, dtype, rows, capability_of(device))


def default_tiles(kernel: str, dtype: torch.dtype, rows: int, capability: int) -> MatmulTiles:
    """Return the largest tiles whose sums fit the registers: larger tiles read less from L2."""
    if INTERPRETED:
        return MatmulTiles(128, 256, 256, 8, 4, 1)
    if dtype == torch.float32:
        return MatmulTiles(64, 64, 32, 8, 4, 2)
    if rows <= SMALL:
        return MatmulTiles(64, 128, 64, 1, 4, 4)
    if capability != 90:
        return MatmulTiles(128, 128, 64, 8, 8, 3)
    # The gradient needs registers for the addresses of its stores.
    wide, high = MatmulTiles(128, 256, 64, 8, 8, 3), MatmulTiles(256, 128, 64, 8, 8, 3)
    return high if "gradient" in kernel else wide

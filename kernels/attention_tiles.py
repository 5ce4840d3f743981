"""How attention is cut into tiles and runs of keys where no table says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow.kernels.common import INTERPRETED, block_of, cdiv
from fastgrow.kernels.gpu import multiprocessors

MAX_QUERIES = 8  # tokens at once, above which `forward` is as good
MAX_ROWS = 64  # of queries times heads that share a key head
MAX_RUNS = 64
# Runs that are joined in one go: another number would compile another kernel while a text grows.
FEW_RUNS = 16
WITHOUT_GPU = 4  # multiprocessors where there is none


@dataclass(frozen=True)
class AttentionTiles:
    """Queries and keys a program handles at a time, and how it is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def forward_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTiles:
    """AttentionTiles of the forward pass, by head dimension and compute capability (90 for 9.0)."""
    if dtype == torch.float32:
        # Products outside the matrix units: the operands live in registers.
        if dim <= 64:
            return AttentionTiles(64, 32, 4 if dim <= 32 else 8, 2)
        return AttentionTiles(32, 32, 8, 2) if dim <= 128 else AttentionTiles(16, 32, 8, 2)
    if dim <= 32:
        # Masks of features and of keys together need the registers of half of the keys.
        return AttentionTiles(64, 128 if dim == block_of(dim) else 64, 4, 3)
    if dim <= 64:
        # Without Hopper's matrix units the operands lie in registers, which 64 keys do not leave.
        return AttentionTiles(128, 64 if capability >= 90 else 32, 4, 3)
    return AttentionTiles(128, 64, 8, 3) if dim <= 128 else AttentionTiles(64, 32, 8, 2)


def d_query_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTiles:
    """AttentionTiles of the kernel for dq."""
    if dtype == torch.float32:
        if dim <= 32:
            return AttentionTiles(32, 32, 4, 2)
        if dim <= 128:
            # Blackwell's code for 32 queries of large heads spills.
            return AttentionTiles(32 if capability < 100 or dim <= 64 else 16, 32, 8, 1)
        return AttentionTiles(16, 16, 8, 2)
    if dim <= 64:
        # As in the forward pass; at head dimension 32 the operands are half as large.
        return AttentionTiles(64, 64 if capability >= 90 or dim <= 32 else 32, 4, 3)
    return AttentionTiles(64, 64, 8, 2) if dim <= 128 else AttentionTiles(32, 32, 8, 1)


def d_key_tiles(dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTiles:
    """AttentionTiles of the kernel for dk and dv; block_m queries at a time meet block_n keys."""
    if dtype == torch.float32:
        if dim <= 64:
            return AttentionTiles(32, 32, 4 if dim <= 32 else 8, 1)
        return AttentionTiles(16, 32, 8, 1) if dim <= 128 else AttentionTiles(16, 16, 8, 1)
    if dim <= 32:
        # Blackwell's code for four warps needs more registers than they have.
        return AttentionTiles(64, 64, 4 if capability < 100 else 8, 2)
    if dim <= 64:
        return AttentionTiles(32, 64, 4, 2)
    return AttentionTiles(64, 64, 8, 2) if dim <= 128 else AttentionTiles(32, 32, 8, 1)


# By head dimension, dtype and compute capability.
OWN_RULES: dict[str, Callable[[int, torch.dtype, int], AttentionTiles]] = {
    "attention_forward": forward_tiles,
    "attention_d_query": d_query_tiles,
    "attention_d_key": d_key_tiles,
}


@dataclass(frozen=True)
class Split:
    """Keys a program reads at a time, how it is compiled, and programs a processor is to have."""

    block_n: int
    programs: int
    num_warps: int
    num_stages: int


def can_decode(q: Tensor, k: Tensor) -> bool:
    """Few queries over more keys than one program should read."""
    queries, keys = q.shape[2], k.shape[2]
    rows = queries * (q.shape[1] // k.shape[1])
    return (
        queries <= MAX_QUERIES and rows <= MAX_ROWS and keys >= 4 * block_n_of(q.shape[3], q.dtype)
    )


def block_n_of(dim: int, dtype: torch.dtype) -> int:
    """Keys a program reads at a time: 16 KiB of them."""
    if INTERPRETED:
        return 16
    return max(16, min(128, 16384 // dtype.itemsize // block_of(dim)))


def split_of(dim: int, dtype: torch.dtype) -> Split:
    """The configuration without a measured one."""
    block_n = block_n_of(dim, dtype)
    if dtype == torch.float32:
        # Without matrix units the operands of a product lie in registers, which more warps share.
        return Split(block_n, 2, 8 if block_n > 16 else 4, 2)
    return Split(block_n, 2, 4, 3)


def runs_of_keys(
    batch_heads: int, keys: int, split: Split, device: torch.device
) -> tuple[int, int]:
    """How many runs the keys are split into, and the keys of a run (a multiple of block_n).

    None has less than two blocks.
    """
    programs = split.programs * multiprocessors(device, WITHOUT_GPU)
    wanted = max(1, programs // batch_heads)
    blocks = cdiv(keys, split.block_n)
    blocks_of_run = max(2, cdiv(blocks, min(wanted, MAX_RUNS)))
    return cdiv(blocks, blocks_of_run), blocks_of_run * split.block_n

"""Default tiles and runs of keys of the attention kernels, used without a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastgrow.kernels.common import INTERPRETED, block_of, cdiv
from fastgrow.kernels.tuned import multiprocessors

MAX_QUERIES = 8  # tokens at once; for more, `forward` is as fast
MAX_ROWS = 64  # queries times heads that share a key head
MAX_RUNS = 64
# The kernel that joins runs is compiled for up to 16 and for up to 64 runs only, so that a growing
# text does not compile more kernels.
FEW_RUNS = 16
WITHOUT_GPU = 4  # assumed number of multiprocessors if there is no GPU


@dataclass(frozen=True)
class AttentionTiles:
    """Queries (block_m) and keys (block_n) that a program handles at once, and compile options."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By kernel, precision (half or fp32) and the largest head dimension that the entry is used for.
TILES = {
    ("attention_forward", "half", 32): AttentionTiles(64, 128, 4, 3),
    ("attention_forward", "half", 64): AttentionTiles(128, 64, 4, 3),
    ("attention_forward", "half", 128): AttentionTiles(128, 64, 8, 3),
    ("attention_forward", "half", 256): AttentionTiles(64, 32, 8, 2),
    ("attention_d_query", "half", 32): AttentionTiles(64, 64, 4, 3),
    ("attention_d_query", "half", 64): AttentionTiles(64, 64, 4, 3),
    ("attention_d_query", "half", 128): AttentionTiles(64, 64, 8, 2),
    ("attention_d_query", "half", 256): AttentionTiles(32, 32, 8, 1),
    ("attention_d_key", "half", 32): AttentionTiles(64, 64, 4, 2),
    ("attention_d_key", "half", 64): AttentionTiles(32, 64, 4, 2),
    ("attention_d_key", "half", 128): AttentionTiles(64, 64, 8, 2),
    ("attention_d_key", "half", 256): AttentionTiles(32, 32, 8, 1),
    # fp32 products do not use the matrix units: their operands are in registers.
    ("attention_forward", "fp32", 32): AttentionTiles(64, 32, 4, 2),
    ("attention_forward", "fp32", 64): AttentionTiles(64, 32, 8, 2),
    ("attention_forward", "fp32", 128): AttentionTiles(32, 32, 8, 2),
    ("attention_forward", "fp32", 256): AttentionTiles(16, 32, 8, 2),
    ("attention_d_query", "fp32", 32): AttentionTiles(32, 32, 4, 2),
    ("attention_d_query", "fp32", 64): AttentionTiles(32, 32, 8, 1),
    ("attention_d_query", "fp32", 128): AttentionTiles(32, 32, 8, 1),
    ("attention_d_query", "fp32", 256): AttentionTiles(16, 16, 8, 2),
    ("attention_d_key", "fp32", 32): AttentionTiles(32, 32, 4, 1),
    ("attention_d_key", "fp32", 64): AttentionTiles(32, 32, 8, 1),
    ("attention_d_key", "fp32", 128): AttentionTiles(16, 32, 8, 1),
    ("attention_d_key", "fp32", 256): AttentionTiles(16, 16, 8, 1),
}
# Without Hopper's matrix units the operands are in registers, and 64 keys would need too many.
BEFORE_HOPPER = {
    ("attention_forward", "half", 64): AttentionTiles(128, 32, 4, 3),
    ("attention_d_query", "half", 64): AttentionTiles(64, 32, 4, 3),
}
# On Blackwell the code spills for 32 queries of large heads, and with four warps for dk and dv.
BLACKWELL = {
    ("attention_d_query", "fp32", 128): AttentionTiles(16, 32, 8, 1),
    ("attention_d_key", "half", 32): AttentionTiles(64, 64, 8, 2),
}


def own_tiles(kernel: str, dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTiles:
    """Return the default tiles of a kernel.

    Args:
        kernel: `attention_forward`, `attention_d_query` (for dq) or `attention_d_key` (dk and dv).
        dim: head dimension.
        capability: compute capability, 90 for 9.0.
    """
    if INTERPRETED:
        return AttentionTiles(64, 64, 4, 1)
    at = (kernel, "fp32" if dtype == torch.float32 else "half", max(32, block_of(dim)))
    if capability < 90 and at in BEFORE_HOPPER:
        return BEFORE_HOPPER[at]
    if capability >= 100 and at in BLACKWELL:
        return BLACKWELL[at]
    if at == ("attention_forward", "half", 32) and dim != block_of(dim):
        # Masks of both features and keys need registers, so a tile has half as many keys.
        return AttentionTiles(64, 64, 4, 3)
    return TILES[at]


@dataclass(frozen=True)
class Split:
    """Keys that a program reads at a time, programs per multiprocessor, and compile options."""

    block_n: int
    programs: int
    num_warps: int
    num_stages: int


def can_decode(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether there are few queries over more keys than one program should read."""
    queries, keys = q.shape[2], k.shape[2]
    rows = queries * (q.shape[1] // k.shape[1])
    return (
        queries <= MAX_QUERIES and rows <= MAX_ROWS and keys >= 4 * block_n_of(q.shape[3], q.dtype)
    )


def block_n_of(dim: int, dtype: torch.dtype) -> int:
    """Return the number of keys that a program reads at a time: 16 KiB of them."""
    if INTERPRETED:
        return 16
    return max(16, min(128, 16384 // dtype.itemsize // block_of(dim)))


def split_of(dim: int, dtype: torch.dtype) -> Split:
    """Return the default configuration, used without a measured one."""
    block_n = block_n_of(dim, dtype)
    if dtype == torch.float32:
        # Without matrix units the operands are in registers; more warps have more registers.
        return Split(block_n, 2, 8 if block_n > 16 else 4, 2)
    return Split(block_n, 2, 4, 3)


def runs_of_keys(
    batch_heads: int, keys: int, split: Split, device: torch.device
) -> tuple[int, int]:
    """Return the number of runs of keys, and the keys of a run (a multiple of block_n).

    A run has at least two blocks.
    """
    wanted = max(1, split.programs * multiprocessors(device, WITHOUT_GPU) // batch_heads)
    blocks = cdiv(keys, split.block_n)
    blocks_of_run = max(2, cdiv(blocks, min(wanted, MAX_RUNS)))
    return cdiv(blocks, blocks_of_run), blocks_of_run * split.block_n

"""How attention is cut into tiles and runs of keys where no table says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastgrow.kernels.common import INTERPRETED, block_of, cdiv
from fastgrow.kernels.tuned import multiprocessors

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


# Of each kernel, in half precision or in fp32, for heads of up to so many features.
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
    # Products outside the matrix units: the operands live in registers.
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
# Without Hopper's matrix units the operands lie in registers, which 64 keys do not leave.
BEFORE_HOPPER = {
    ("attention_forward", "half", 64): AttentionTiles(128, 32, 4, 3),
    ("attention_d_query", "half", 64): AttentionTiles(64, 32, 4, 3),
}
# Blackwell's code spills for 32 queries of large heads, and with four warps for dk and dv.
BLACKWELL = {
    ("attention_d_query", "fp32", 128): AttentionTiles(16, 32, 8, 1),
    ("attention_d_key", "half", 32): AttentionTiles(64, 64, 8, 2),
}


def own_tiles(kernel: str, dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTiles:
    """Those of `attention_forward`, `attention_d_query` (for dq) or `attention_d_key` (dk and dv).

    Args:
        dim: head dimension.
        capability: 90 for compute capability 9.0.
    """
    if INTERPRETED:
        return AttentionTiles(64, 64, 4, 1)
    at = (kernel, "fp32" if dtype == torch.float32 else "half", max(32, block_of(dim)))
    if capability < 90 and at in BEFORE_HOPPER:
        return BEFORE_HOPPER[at]
    if capability >= 100 and at in BLACKWELL:
        return BLACKWELL[at]
    if at == ("attention_forward", "half", 32) and dim != block_of(dim):
        # Masks of features and of keys together need the registers of half of the keys.
        return AttentionTiles(64, 64, 4, 3)
    return TILES[at]


@dataclass(frozen=True)
class Split:
    """Keys a program reads at a time, how it is compiled, and programs a processor is to have."""

    block_n: int
    programs: int
    num_warps: int
    num_stages: int


def can_decode(q: torch.Tensor, k: torch.Tensor) -> bool:
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
    wanted = max(1, split.programs * multiprocessors(device, WITHOUT_GPU) // batch_heads)
    blocks = cdiv(keys, split.block_n)
    blocks_of_run = max(2, cdiv(blocks, min(wanted, MAX_RUNS)))
    return cdiv(blocks, blocks_of_run), blocks_of_run * split.block_n

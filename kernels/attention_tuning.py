"""Candidate configurations of the attention kernels (benchmarks/tuning.py measures them).

None of them spills on sm_90 (tests/kernels/test_tunables.py compiles them). In half precision the
tiles of the products have at least 64 rows, which the matrix units of sm_90 require. At head
dimension 256 only two such shapes of the forward pass do not spill, and none of the backward pass,
so there are no candidates for it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

from fastgrow.kernels.attention import (
    FEW,
    LENGTHS,
    MANY,
    backward,
    bucket,
    decode,
    decode_bucket,
    forward,
)
from fastgrow.kernels.attention_tiles import (
    AttentionTiles,
    Split,
    own_tiles,
    split_of,
)
from fastgrow.kernels.calls import AttentionCall
from fastgrow.kernels.tunable import Tunable, with_stages

TOKENS = 16384  # tokens of a launch, in sequences of the bucket's length
WIDTH = 1024  # features of all heads together

# Ranks by dtype and head dimension. First come 32, which fastgrow's models use and library kernels
# support least, and 128, which most other models use.
RANKS = {torch.bfloat16: {32: 0, 64: 1, 128: 0}, torch.float16: {32: 3, 64: 3, 128: 3}}
LAST = 4
# Keys with rank 0 in decoding: dtype, head dimension, length and sequences times key heads.
DECODE_FIRST = {
    (torch.bfloat16, 32, LENGTHS[1], MANY),
    (torch.bfloat16, 32, LENGTHS[1], FEW),
    (torch.bfloat16, 128, LENGTHS[1], FEW),
}

HALF = {
    ("attention_forward", 32): with_stages(
        AttentionTiles,
        [
            *[(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4)],
            *[(128, 64, 8), (128, 128, 8)],
        ],
        (2, 3),
    ),
    ("attention_d_query", 32): with_stages(
        AttentionTiles,
        [
            *[(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4)],
            *[(128, 32, 8), (128, 64, 8)],
        ],
        (2, 3),
    ),
    ("attention_d_key", 32): with_stages(
        AttentionTiles,
        [(16, 64, 4), (32, 64, 4), (64, 64, 4), (32, 128, 4), (32, 128, 8), (64, 128, 8)],
        (2, 3),
    ),
    ("attention_forward", 64): with_stages(
        AttentionTiles,
        [(64, 32, 4), (64, 64, 4), (128, 32, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)],
        (2, 3),
    ),
    ("attention_d_query", 64): with_stages(
        AttentionTiles, [(64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 8), (128, 64, 8)], (2, 3)
    ),
    ("attention_d_key", 64): with_stages(
        AttentionTiles, [(16, 64, 4), (32, 64, 4), (64, 64, 4), (32, 128, 8), (64, 128, 8)], (2, 3)
    ),
    ("attention_forward", 128): with_stages(
        AttentionTiles,
        [(64, 32, 4), (64, 64, 4), (64, 32, 8), (64, 64, 8), (128, 32, 8), (128, 64, 8)],
        (2, 3),
    ),
    ("attention_d_query", 128): [
        *with_stages(AttentionTiles, [(64, 16, 8), (64, 32, 8), (64, 64, 8), (32, 64, 8)], (2, 3)),
        *with_stages(AttentionTiles, [(32, 32, 8), (32, 64, 4)], (2,)),
    ],
    ("attention_d_key", 128): [
        *with_stages(AttentionTiles, [(16, 64, 8), (32, 64, 8)], (1, 2, 3)),
        *with_stages(AttentionTiles, [(64, 64, 8), (32, 32, 8)], (2,)),
    ],
}
# fp32 products do not use the matrix units: their operands are in registers.
FULL = {
    ("attention_forward", 32): with_stages(
        AttentionTiles,
        [
            *[(32, 32, 4), (32, 32, 8), (32, 64, 8), (64, 16, 4), (64, 16, 8)],
            *[(64, 64, 8), (128, 16, 8), (128, 32, 8)],
        ],
        (2,),
    ),
    ("attention_d_query", 32): with_stages(
        AttentionTiles,
        [
            *[(16, 32, 4), (16, 64, 4), (16, 64, 8), (32, 16, 4), (32, 32, 4)],
            *[(32, 32, 8), (32, 64, 8), (64, 16, 8)],
        ],
        (1,),
    ),
    ("attention_d_key", 32): with_stages(
        AttentionTiles,
        [
            *[(16, 16, 4), (16, 32, 4), (16, 32, 8), (16, 64, 4), (16, 64, 8)],
            *[(32, 16, 4), (32, 16, 8), (32, 32, 4), (32, 64, 8)],
        ],
        (1,),
    ),
    ("attention_forward", 64): with_stages(
        AttentionTiles,
        [
            *[(16, 32, 4), (16, 32, 8), (32, 16, 4), (32, 16, 8), (32, 32, 4)],
            *[(32, 32, 8), (64, 16, 8)],
        ],
        (2,),
    ),
    ("attention_d_query", 64): with_stages(
        AttentionTiles,
        [
            *[(16, 16, 8), (16, 32, 4), (16, 32, 8), (16, 64, 8), (32, 16, 4)],
            *[(32, 16, 8), (32, 32, 4), (32, 64, 8), (64, 16, 8)],
        ],
        (1,),
    ),
    ("attention_d_key", 64): [
        *with_stages(AttentionTiles, [(16, 32, 8), (16, 64, 8), (32, 16, 8)], (1,)),
        *with_stages(AttentionTiles, [(16, 16, 4), (16, 32, 4), (32, 16, 4)], (1, 2)),
    ],
}
# (block_n, programs, num_warps) by head dimension.
SPLITS = {
    32: [
        *[(64, 2, 2), (64, 4, 2), (128, 2, 4), (128, 4, 4)],
        *[(256, 2, 4), (256, 4, 4), (256, 2, 8), (256, 4, 8)],
    ],
    64: [
        *[(64, 2, 2), (64, 4, 2), (64, 2, 4), (64, 4, 4)],
        *[(128, 2, 4), (128, 4, 4), (256, 2, 8), (256, 4, 8)],
    ],
    128: [
        *[(32, 2, 2), (32, 4, 2), (64, 2, 4), (64, 4, 4)],
        *[(128, 2, 4), (128, 4, 4), (128, 2, 8), (128, 4, 8)],
    ],
}


def tunables(capability: int) -> list[Tunable[AttentionTiles] | Tunable[Split]]:
    """Return a tunable for every kernel and bucket that may have an entry in a table."""
    halves = (torch.bfloat16, torch.float16)
    training = [
        *itertools.product(HALF.items(), halves, LENGTHS),
        *itertools.product(FULL.items(), [torch.float32], LENGTHS),
    ]
    return [
        *(
            Tunable(
                kernel=kernel,
                bucket=bucket(dtype, dim, length),
                default=own_tiles(kernel, dim, dtype, capability),
                others=others,
                function=kernel.removeprefix("attention_") + "_kernel",
                prepare=functools.partial(_train, kernel, dim, dtype, length, capability),
                capability=capability,
                rank=RANKS.get(dtype, {}).get(dim, LAST),
            )
            for ((kernel, dim), others), dtype, length in training
        ),
        *(
            Tunable(
                kernel="attention_decode",
                bucket=decode_bucket(dtype, dim, length, heads),
                default=split_of(dim, dtype),
                others=with_stages(Split, splits, (2, 4)),
                function="decode_kernel",
                prepare=functools.partial(_generate, dim, dtype, length, heads),
                capability=capability,
                rank=(
                    0 if (dtype, dim, length, heads) in DECODE_FIRST else max(1, RANKS[dtype][dim])
                ),
            )
            for (dim, splits), dtype, length, heads in itertools.product(
                SPLITS.items(), halves, LENGTHS, (FEW, MANY)
            )
        ),
    ]


def _train(
    kernel: str, dim: int, dtype: torch.dtype, length: int, capability: int, device: str
) -> Callable[[AttentionTiles], object]:
    """Prepare causal attention with rotary positions on random tensors.

    The tensors are laid out as [B, T, H, D], as projections return them, so a head's rows are not
    adjacent.
    """
    shape = (TOKENS // length, length, WIDTH // dim, dim)
    q, k, v, d_out = (
        torch.randn(shape, dtype=dtype, device=device).transpose(1, 2) for _ in range(4)
    )
    angles = torch.rand(length, dim // 2, device=device)
    call = AttentionCall(q, k, v, angles.cos(), angles.sin(), scale=dim**-0.5)
    if kernel == "attention_forward":
        return lambda tiles: forward(call, tiles=tiles)
    # The default tiles, not a table's, so that the launched kernel is the one compiled ahead.
    tiles = own_tiles("attention_forward", dim, dtype, capability)
    out, lse = forward(call, tiles=tiles)
    assert lse is not None
    return lambda tiles: backward(
        *(call, d_out, out, lse),
        for_query=kernel == "attention_d_query",
        for_key=kernel == "attention_d_key",
        tiles=tiles,
    )


def _generate(
    dim: int, dtype: torch.dtype, length: int, heads: int, device: str
) -> Callable[[Split], object]:
    """Prepare decoding of one token of each sequence over a full cache of rotated keys."""
    batch = heads // FEW
    q = torch.randn(batch, FEW, 1, dim, dtype=dtype, device=device)
    k, v = (torch.randn(batch, FEW, length, dim, dtype=dtype, device=device) for _ in range(2))
    angles = torch.rand(length, dim // 2, device=device)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=device)
    call = AttentionCall(
        *(q, k, v, angles.cos(), angles.sin()), lengths=lengths, k_rotated=True, scale=dim**-0.5
    )
    return lambda split: decode(call, split=split)

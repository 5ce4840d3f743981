"""A tile of a head's logits: the matrix product that the kernels of `linear_lse_gather` share.

    z[m, v] = Σ_k Σ_i h_k[m, i] · weight_k[v, i] + bias[v]

Heads come as tuples of pointers, so that each is read where it lies. Beyond the last row and the
last word the last ones are read again; whoever uses the tile leaves those places out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import operand


@triton.jit
def tile_of(rows, words, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which tile a program makes: a group of row tiles shares the words it reads through L2."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(words, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP_M * tiles_n)
    height = min(tiles_m - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    return group * GROUP_M + within % height, within // height


@triton.jit
def logits_tile(
    hs,
    weights,
    bias,
    h_strides,
    weight_strides,
    widths,
    row,
    column,
    HEADS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Logits [BLOCK_M, BLOCK_N] in fp32 of given rows and words, which must exist."""
    z = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    feature = tl.arange(0, BLOCK_K)
    for k in tl.static_range(HEADS):
        h_at = hs[k] + row.to(tl.int64)[:, None] * h_strides[k] + feature[None, :]
        weight_at = weights[k] + column.to(tl.int64)[None, :] * weight_strides[k] + feature[:, None]
        for start in range(0, widths[k], BLOCK_K):
            if WHOLE:
                a, b = tl.load(h_at), tl.load(weight_at)
            else:
                inside = start + feature < widths[k]
                a = tl.load(h_at, mask=inside[None, :], other=0.0)
                b = tl.load(weight_at, mask=inside[:, None], other=0.0)
            z = tl.dot(
                operand(a, INTERPRETED), operand(b, INTERPRETED), z, input_precision=PRECISION
            )
            h_at += BLOCK_K
            weight_at += BLOCK_K
    if bias is not None:
        z += tl.load(bias + column).to(tl.float32)[None, :]
    return z

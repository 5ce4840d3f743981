"""A tile of a head's logits: the matrix product that the kernels of `linear_lse_gather` share.

    z[m, v] = Σ_k Σ_i h_k[m, i] · weight_k[v, i] + bias[v]

Heads come as tuples of pointers, so that each is read where it lies. Beyond the last row and the
last word the last ones are read again; whoever uses the tile leaves those places out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fastgrow.kernels.common import INTERPRETED, as_strided_rows, dot_precision, operand
from fastgrow.kernels.gpu import capability_of
from fastgrow.kernels.tuned import NAMES, chosen_once, measured

MAX_HEADS = 8
SMALL = 64  # rows to which a launch counts as small


@dataclass(frozen=True)
class Tiles:
    """Rows and words of a tile, features at a time, and how many tiles of rows go together."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Product:
    """K pairs of h [N, d_k] and weight [V, d_k], whose last dimensions are contiguous."""

    h: tuple[torch.Tensor, ...]
    weight: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None

    @property
    def rows(self) -> int:
        return self.h[0].shape[0]

    @property
    def vocabulary(self) -> int:
        return self.weight[0].shape[0]

    def arguments(self) -> dict[str, object]:
        """The kernels' common arguments."""
        return {
            "hs": self.h,
            "weights": self.weight,
            "bias": self.bias,
            "h_strides": tuple(h.stride(0) for h in self.h),
            "weight_strides": tuple(w.stride(0) for w in self.weight),
            "widths": tuple(h.shape[1] for h in self.h),
        }

    def constants(self, tiles: Tiles) -> dict[str, object]:
        """The kernels' common constants."""
        return {
            "HEADS": len(self.h),
            "WHOLE": all(h.shape[1] % tiles.block_k == 0 for h in self.h),
            "PRECISION": dot_precision(self.h[0].dtype),
            "INTERPRETED": INTERPRETED,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "GROUP_M": tiles.group_m,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }


def product(
    h: list[torch.Tensor], weight: list[torch.Tensor], bias: torch.Tensor | None
) -> Product:
    """The pairs as the kernels read them; copies only what is not contiguous in a row."""
    return Product(
        tuple(as_strided_rows(x) for x in h),
        tuple(as_strided_rows(w) for w in weight),
        None if bias is None else bias.contiguous(),
    )


def key(dtype: torch.dtype, rows: int) -> str:
    """Under which a table holds tiles. Products of a few rows are bound by reading the weight."""
    return f"{NAMES[dtype]}/N={SMALL if rows <= SMALL else 8192}"


def tiles_for(kernel: str, product: Product) -> Tiles:
    """The table's tiles of `linear_lse` or `linear_lse_gradient`, or those of a rule."""
    h = product.h[0]
    return _tiles(kernel, h.dtype, SMALL if product.rows <= SMALL else SMALL + 1, h.device)


@chosen_once
def _tiles(kernel: str, dtype: torch.dtype, rows: int, device: torch.device) -> Tiles:
    found = measured(kernel, key(dtype, rows), device, Tiles)
    return found or default_tiles(kernel, dtype, rows, capability_of(device))


def default_tiles(kernel: str, dtype: torch.dtype, rows: int, capability: int) -> Tiles:
    """The largest tiles whose sums stay in registers: traffic from L2 falls with their edges."""
    if INTERPRETED:
        return Tiles(128, 256, 256, 8, 4, 1)
    if dtype == torch.float32:
        return Tiles(64, 64, 32, 8, 4, 2)
    if rows <= SMALL:
        return Tiles(64, 128, 64, 1, 4, 4)
    if capability != 90:
        return Tiles(128, 128, 64, 8, 8, 3)
    # The gradient needs registers for the addresses that it is stored to.
    return Tiles(256, 128, 64, 8, 8, 3) if "gradient" in kernel else Tiles(128, 256, 64, 8, 8, 3)


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

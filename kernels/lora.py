"""A frozen linear layer with a low-rank update, as one product with a longer contraction.

    y = scale · u · bᵀ + x · weightᵀ + bias          u = x · aᵀ, narrow, computed once before

The low-rank steps come first, because the accumulator then contains only their sum and can be
multiplied by the scale. The gradient of x is the same product with other strides; those of a and b
are narrow products over all rows, split over programs and summed in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrow.kernels.calls import LoraCall, LoraGradient
from fastgrow.kernels.common import (
    INTERPRETED,
    as_strided_rows,
    cdiv,
    dot_precision,
    measured_size,
    next_power_of_2,
    on_device_of,
    operand,
)
from fastgrow.kernels.matmul import MatmulTiles, accumulate, tile_of
from fastgrow.kernels.tuned import NAMES, chosen_once, measured


# Both kernels are specialised on N, the number of rows: otherwise they spill on sm_80 and sm_100.
@triton.jit
def low_rank_kernel(
    X, W, U, B, BIAS, Y,
    x_n, w_o, w_k, u_n, b_o, b_r, y_n,
    N, OUT, K, RANK, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_R: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write Y [N, OUT]: one program per tile, over the ranks and then the K features."""
    rows, cols, _, _ = tile_of(tl.program_id(0), N, OUT, BLOCK_M, BLOCK_N, GROUP_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = accumulate(
        acc, U, B, rows, cols, u_n, 1, b_o, b_r, N, OUT, RANK,
        BLOCK_R, EVEN_R, PRECISION, INTERPRETED,
    )  # fmt: skip
    acc *= tl.cast(scale, tl.float32)
    acc = accumulate(
        acc, X, W, rows, cols, x_n, 1, w_o, w_k, N, OUT, K,
        BLOCK_K, EVEN_K, PRECISION, INTERPRETED,
    )  # fmt: skip
    if BIAS is not None:
        acc += tl.load(BIAS + cols, mask=cols < OUT, other=0.0).to(tl.float32)[None, :]
    at = Y + rows.to(tl.int64)[:, None] * y_n + cols[None, :]
    tl.store(at, acc.to(Y.dtype.element_ty), mask=(rows < N)[:, None] & (cols < OUT)[None, :])


@triton.jit
def narrow_kernel(
    WIDE, NARROW, PARTIAL,
    w_n, n_n, p_s, p_c, p_r,
    N, C, RANK, rows_of_split,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write PARTIAL[s, c, r] = Σ_n WIDE[n, c] · NARROW[n, r] over the rows of split s."""
    ranks = tl.cdiv(RANK, BLOCK_R)
    c = tl.program_id(0) // ranks * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(0) % ranks * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(1)
    i = tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    stop = tl.minimum(N, (split + 1) * rows_of_split)
    for n0 in tl.range(split * rows_of_split, stop, BLOCK_N):
        rows = (n0 + i).to(tl.int64)[:, None]
        row_ok = (n0 + i < stop)[:, None]
        wide = tl.load(WIDE + rows * w_n + c[None, :], mask=row_ok & (c < C)[None, :], other=0.0)
        narrow = tl.load(
            NARROW + rows * n_n + r[None, :], mask=row_ok & (r < RANK)[None, :], other=0.0
        )
        wide, narrow = operand(wide, INTERPRETED), operand(narrow, INTERPRETED)
        acc = tl.dot(tl.trans(wide), narrow, acc, input_precision=PRECISION)
    at = PARTIAL + split.to(tl.int64) * p_s + c.to(tl.int64)[:, None] * p_c
    tl.store(at + r[None, :] * p_r, acc, mask=(c < C)[:, None] & (r < RANK)[None, :])


@dataclass(frozen=True)
class NarrowTiles:
    """Rows and columns that `narrow_kernel` processes at a time, and compile options."""

    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


# Contraction lengths whose tiles are measured.
WIDTHS = (1024, 4096)
# Number of programs: two for each multiprocessor of a large GPU.
PROGRAMS = 264


def product_tiles(dtype: torch.dtype, *, ragged: bool = False) -> MatmulTiles:
    """Return the default tiles of the products with the frozen weight.

    Args:
        ragged: whether a width is not a multiple of 16.
    """
    if INTERPRETED:
        return MatmulTiles(128, 128, 128, 8, 4, 1)
    if dtype == torch.float32:
        # fp32 products do not use the matrix units: their operands are in registers.
        return MatmulTiles(64, 64, 16, 8, 4, 2)
    if ragged:
        # Elements are loaded one by one, each with its own address in registers.
        return MatmulTiles(64, 64, 32, 8, 4, 2)
    return MatmulTiles(128, 128, 64, 8, 8, 3)


def narrow_tiles(dtype: torch.dtype) -> NarrowTiles:
    """Return the default tiles of the gradients of a and b."""
    if INTERPRETED:
        return NarrowTiles(128, 128, 4, 1)
    if dtype == torch.float32:
        return NarrowTiles(16, 64, 4, 2)
    return NarrowTiles(64, 128, 4, 3)


def product_key(dtype: torch.dtype, width: int) -> str:
    """Return the key of a product's measured tiles, such as `bf16/K=1024`."""
    return f"{NAMES[dtype]}/K={measured_size(width, WIDTHS)}"


def narrow_key(dtype: torch.dtype, rank: int) -> str:
    """Return the key of a narrow product's measured tiles, such as `bf16/R=16`."""
    return f"{NAMES[dtype]}/R={block_of(rank)}"


def block_of(rank: int) -> int:
    """Return the number of ranks that a program processes at a time."""
    return min(64, max(16, next_power_of_2(rank)))


def forward(call: LoraCall, *, tiles: MatmulTiles | None = None) -> tuple[Tensor, Tensor]:
    """Return y [N, out] and u [N, r] of x [N, in], in x's dtype.

    Args:
        tiles: tiles of the kernel, for tuning.
    """
    x, weight, a, b, bias, scale = call
    a, b = _whole_vectors(a, 0, x.dtype), _whole_vectors(b, 1, x.dtype)
    u = x @ a.T
    y = x.new_empty(x.shape[0], weight.shape[0])
    low_rank_product(x, weight, u, b, bias, scale, y, "lora_forward", tiles)
    return y, u if u.shape[1] == call.a.shape[0] else u[:, : call.a.shape[0]].contiguous()


def backward(
    call: LoraGradient, *, tiles: MatmulTiles | None = None, narrow: NarrowTiles | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dx (needs `weight`), da (needs `x`) and db (needs `u`) of `forward`, or None.

    Args:
        tiles, narrow: tiles of the kernels, for tuning.
    """
    dy, x, u, weight, a, b, scale = call
    dx = da = db = None
    if weight is not None or x is not None:
        dy_b = dy @ _whole_vectors(b, 1, dy.dtype)
        if weight is not None:
            dx = dy.new_empty(dy.shape[0], weight.shape[1])
            low_rank = (dy_b, _whole_vectors(a, 0, dy.dtype).T, None, scale, dx)
            low_rank_product(dy, weight.T, *low_rank, "lora_d_input", tiles)
        if x is not None:
            dy_b = dy_b[:, : a.shape[0]]
            da = narrow_product(x, dy_b, scale, narrow, transposed=True).to(a.dtype)
    if u is not None:
        db = narrow_product(dy, u, scale, narrow).to(b.dtype)
    return dx, da, db


def _whole_vectors(tensor: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return a or b in the products' dtype, with the rank padded with zeros to a multiple of 16.

    Rows that begin at multiples of 16 are loaded in vectors, others one element at a time.
    """
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    missing = -tensor.shape[dim] % 16
    padding = (0, missing) if dim == 1 else (0, 0, 0, missing)
    return torch.nn.functional.pad(tensor, padding) if missing else tensor


def low_rank_product(
    x: Tensor,
    weight: Tensor,
    u: Tensor,
    b: Tensor,
    bias: Tensor | None,
    scale: float,
    y: Tensor,
    name: str,
    tiles: MatmulTiles | None = None,
) -> None:
    """Fill y [N, out] with x [N, K] · weight [out, K]ᵀ + scale · u [N, r] · b [out, r]ᵀ + bias.

    `weight` and `b` may have any strides; `name` is the kernel's name in the tables.
    """
    if y.numel() == 0:
        return
    x, u = as_strided_rows(x), as_strided_rows(u)
    bias = None if bias is None else bias.contiguous()
    (n, width), (out, rank) = x.shape, b.shape
    ragged = width % 16 > 0 or out % 16 > 0
    tiles = tiles or _product_tiles(name, x.dtype, measured_size(width, WIDTHS), ragged, x.device)
    with on_device_of(x):
        low_rank_kernel[tiles.grid(n, out)](
            x, weight, u, b, bias, y,
            x.stride(0), *weight.stride(), u.stride(0), *b.stride(), y.stride(0),
            n, out, width, rank, scale,
            BLOCK_R=block_of(rank), EVEN_R=rank % block_of(rank) == 0,
            **tiles.constants(x, width),
        )  # fmt: skip


@chosen_once
def _product_tiles(
    name: str, dtype: torch.dtype, width: int, ragged: bool, device: torch.device
) -> MatmulTiles:
    key = None if ragged else product_key(dtype, width)
    return measured(name, key, device, MatmulTiles) or product_tiles(dtype, ragged=ragged)


def narrow_product(
    wide: Tensor,
    narrow: Tensor,
    scale: float,
    tiles: NarrowTiles | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """Return scale · wide [N, C]ᵀ · narrow [N, r], float32 [C, r], or [r, C] if `transposed`."""
    wide, narrow = as_strided_rows(wide), as_strided_rows(narrow)
    (n, columns), rank = wide.shape, narrow.shape[1]
    tiles = tiles or _narrow_tiles(wide.dtype, rank, wide.device)
    block_r = block_of(rank)
    programs = cdiv(columns, tiles.block_c) * cdiv(rank, block_r)
    steps = cdiv(n, tiles.block_n)
    # With fewer than four steps per program, starting it and storing its result would dominate.
    splits = max(1, min(PROGRAMS // max(programs, 1), steps // 4))
    shape = (splits, rank, columns) if transposed else (splits, columns, rank)
    sums = wide.new_empty(shape, dtype=torch.float32)
    by_column = sums.mT if transposed else sums
    # Without rows the kernel fills the sums with zeros.
    if columns > 0:
        with on_device_of(wide):
            narrow_kernel[programs, splits](
                wide, narrow, sums, wide.stride(0), narrow.stride(0), *by_column.stride(),
                n, columns, rank, cdiv(steps, splits) * tiles.block_n,
                BLOCK_N=tiles.block_n, BLOCK_C=tiles.block_c, BLOCK_R=block_r,
                PRECISION=dot_precision(wide.dtype), INTERPRETED=INTERPRETED,
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
    return sums.sum(0) * scale


@chosen_once
def _narrow_tiles(dtype: torch.dtype, rank: int, device: torch.device) -> NarrowTiles:
    key = narrow_key(dtype, rank)
    return measured("lora_narrow", key, device, NarrowTiles) or narrow_tiles(dtype)

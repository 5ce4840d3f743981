"""What every kernel and launcher shares.

Rules of the house: offsets are 64-bit before strides multiply them, every masked load says what
stands in, sums run in fp32, and exponentials are powers of two with log2(e) folded into a factor.
Rows, sequences and heads lie along a grid's first axis: CUDA ends the others at 65,535.
"""

from __future__ import annotations

import contextlib
import os
from typing import TypeVar

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

F = TypeVar("F")

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

ROW_STRIDE_LIMIT = 2**31 // 256  # no tile has more rows


_HERE = contextlib.nullcontext()


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch where the tensor lives: Triton takes the current device and its current stream."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return _HERE


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv can be called in kernels too, for which the host pays 2 µs."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n ≥ 1; as quick beside Triton's as `cdiv`."""
    return 1 << (n - 1).bit_length()


def block_of(dim: int) -> int:
    """Width of a tile that holds `dim` features; products take no narrower ones."""
    return max(16, next_power_of_2(dim))


def measured_size(size: int, sizes: tuple[int, int]) -> int:
    """Which of the two sizes that are measured stands for this one."""
    return sizes[0] if size <= 2 * sizes[0] else sizes[1]


def contiguous_like(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """New memory of a tensor's shape; of the ways to ask for it the quickest."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: TF32 only where the user lets torch's own products use it."""
    return "tf32" if dtype == torch.float32 and _tf32_is_permitted() else "ieee"


def _tf32_is_permitted() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        # torch refuses to answer where the newer switch was used.
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def as_strided_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, else a contiguous copy.

    Also a copy where rows lie so far apart that a tile's offsets, which have 32 bits within it,
    would not reach from its first row to its last.
    """
    strides = tensor.stride()
    if len(strides) > 1 and strides[-2] > ROW_STRIDE_LIMIT and tensor.shape[-2] > 1:
        return tensor.contiguous()
    return tensor if strides[-1] == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def as_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """[..., d] with d ≥ 1 as rows that are contiguous, and how far apart they begin.

    A copy only where strides allow no view.
    """
    if tensor.is_contiguous():
        # The same memory in whatever shape, which kernels do not see.
        return tensor, tensor.shape[-1]
    rows = as_strided_rows(tensor.reshape(-1, tensor.shape[-1]))
    return rows, rows.stride(0)


def settled(function: F) -> F:
    """A decorator of functions that kernels of several files call and that read global constants,
    and of functions that call themselves.

    Triton's key of such a kernel has those constants or not, as the function's own key was made
    before or not: so it would depend on what the process launched earlier, and what one process
    compiled another would not find. Here the function's own key is made when it is defined.
    """
    # The interpreter's functions have none.
    getattr(function, "cache_key", None)
    return function


@triton.jit
def load_rows(X, offsets, row_ok, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of D features at int64 offsets, [rows, BLOCK_D]; zeros where there is nothing."""
    d = tl.arange(0, BLOCK_D)
    mask = row_ok[:, None] & (d < D)[None, :]
    return tl.load(X + offsets[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(X, offsets, rows, row_ok, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows [rows, BLOCK_D] in X's dtype to int64 offsets."""
    d = tl.arange(0, BLOCK_D)
    mask = row_ok[:, None] & (d < D)[None, :]
    tl.store(X + offsets[:, None] + d[None, :], rows.to(X.dtype.element_ty), mask=mask)


@triton.jit
def operand(x, INTERPRETED: tl.constexpr):
    """A loaded tile as an operand of tl.dot.

    The interpreter keeps bf16 as bare 16-bit integers and multiplies those; there the tile is
    widened. A GPU gets it as it is, for its matrix units.
    """
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def operand_like(x, like, INTERPRETED: tl.constexpr):
    """A computed fp32 tile as the other operand of a product with `like`."""
    if not INTERPRETED:
        x = x.to(like.dtype)
    return x

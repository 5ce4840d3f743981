"""Helpers that all kernels and launchers share.

Conventions of all kernels: offsets are 64-bit before they are multiplied by strides, every masked
load has an explicit `other`, sums are computed in fp32, and exponentials are powers of two with
log2(e) folded into a factor. Rows, sequences and heads are on the first axis of a grid, because
CUDA limits the others to 65,535 programs.
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
    """Return a context that makes the tensor's device current.

    Triton launches on the current device and its current stream.
    """
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return _HERE


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up; triton.cdiv, which kernels can call too, takes 2 µs on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n ≥ 1; faster than Triton's function."""
    return 1 << (n - 1).bit_length()


def block_of(dim: int) -> int:
    """Return the width of a tile for `dim` features; tl.dot requires at least 16."""
    return max(16, next_power_of_2(dim))


def measured_size(size: int, sizes: tuple[int, int]) -> int:
    """Return which of the two measured sizes is used for this size."""
    return sizes[0] if size <= 2 * sizes[0] else sizes[1]


def contiguous_like(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an empty contiguous tensor of the same shape, by torch's fastest call for this."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def dot_precision(dtype: torch.dtype) -> str:
    """Return `input_precision` of tl.dot: TF32 only if torch's own products may use it."""
    return "tf32" if dtype == torch.float32 and _tf32_is_permitted() else "ieee"


def _tf32_is_permitted() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        # torch raises an error if the newer setting was used.
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def as_strided_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor if its last dimension is contiguous, else a contiguous copy.

    It is also copied if rows are so far apart that the offsets within a tile, which have 32 bits,
    would overflow between its first row and its last.
    """
    strides = tensor.stride()
    if len(strides) > 1 and strides[-2] > ROW_STRIDE_LIMIT and tensor.shape[-2] > 1:
        return tensor.contiguous()
    return tensor if strides[-1] == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def as_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return [..., d], d ≥ 1, as contiguous rows, and the distance between their beginnings.

    Copies only if the strides do not allow a view.
    """
    if tensor.is_contiguous():
        # Kernels do not see the shape, so no view is needed.
        return tensor, tensor.shape[-1]
    rows = as_strided_rows(tensor.reshape(-1, tensor.shape[-1]))
    return rows, rows.stride(0)


def stable_cache_key(function: F) -> F:
    """Decorate a function that reads global constants and is called by kernels of several files,
    or a function that calls itself.

    Whether Triton's cache key of a calling kernel includes those constants depends on whether the
    function's own key was computed before. The key would therefore depend on earlier launches in
    the process, and one process would not find what another one compiled. This decorator computes
    the function's key when the function is defined.
    """
    # Functions of the interpreter have no cache key.
    getattr(function, "cache_key", None)
    return function


@triton.jit
def load_rows(X, offsets, row_ok, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of D features at int64 offsets, [rows, BLOCK_D]; zeros outside."""
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
    """Return a loaded tile as an operand of tl.dot.

    The interpreter stores bf16 as 16-bit integers and would multiply these, so the tile is
    converted to fp32 there. On a GPU it stays unchanged, for the matrix units.
    """
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def operand_like(x, like, INTERPRETED: tl.constexpr):
    """Convert a computed fp32 tile to the dtype of `like`, the other operand of tl.dot."""
    if not INTERPRETED:
        x = x.to(like.dtype)
    return x

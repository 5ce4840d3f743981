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


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch where the tensor lives: Triton takes the current device and its current stream."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


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
    if tensor.dim() > 1 and tensor.shape[-2] > 1 and tensor.stride(-2) > ROW_STRIDE_LIMIT:
        return tensor.contiguous()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def settled(function: F) -> F:
    """A decorator of functions that kernels of several files call and that read global constants.

    Triton's key of such a kernel has those constants or not, as the function's own key was made
    before or not: so it would depend on what the process launched earlier, and what one process
    compiled another would not find. Here the function's own key is made when it is defined.
    """
    # The interpreter's functions have none.
    getattr(function, "cache_key", None)
    return function


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

"""Counter-based uniform random numbers: the same on every device, in any order, without a state.

Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
The key is the seed and the counter is (row, step), so that a row's number depends only on these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.ops.core.extension import on_gpu
from fastgrow.ops.core.registration import operator

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Return four random words for each counter of four words; int64 tensors of 32-bit numbers."""
    key_0, key_1 = key
    for _ in range(10):
        high_0, low_0 = _product(_MULTIPLIERS[0], counter[0])
        high_1, low_1 = _product(_MULTIPLIERS[1], counter[2])
        counter = [high_1 ^ counter[1] ^ key_0, low_1, high_0 ^ counter[3] ^ key_1, low_0]
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _WORD, (key_1 + _KEY_STEPS[1]) & _WORD
    return counter


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low word of a product of 32-bit numbers, which may overflow int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _WORD


def eager_uniforms(logits: Tensor, seed: int, step: int) -> Tensor:
    """`row_uniforms` in plain PyTorch, for every device."""
    shape = logits.shape[:-1]
    row = torch.arange(shape.numel(), device=logits.device)
    steps = [torch.full_like(row, word) for word in (step & _WORD, (step >> 32) & _WORD)]
    word, *_ = philox([row & _WORD, row >> 32, *steps], (seed & _WORD, (seed >> 32) & _WORD))
    return ((word >> 8).double() * 2.0**-24).view(shape)


def _like(logits: Tensor, seed: int, step: int) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.float64)


@operator(_like, devices=("CompositeExplicitAutograd",))
def row_uniforms(logits: Tensor, seed: int, step: int) -> Tensor:
    """Return for each row of logits [..., V] a multiple of 2⁻²⁴ in [0, 1): [...] float64."""
    if on_gpu(logits):
        extension, library = _native.CUDA, torch.ops.fastgrow_cuda
    else:
        extension, library = _native.CPU, torch.ops.fastgrow_native
    if not extension.loaded or logits.device.type not in ("cpu", "cuda"):
        return eager_uniforms(logits, seed, step)
    numbers = _like(logits, seed, step)
    library.philox_uniform_(seed, step, numbers)
    return numbers

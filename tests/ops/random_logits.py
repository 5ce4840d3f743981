"""Random logits of several experts, for tests without hypothesis."""

from __future__ import annotations

import torch
from torch import Tensor


def make(k: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(k)]

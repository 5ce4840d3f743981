"""The rotation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import RopeCall


def run(call: RopeCall) -> Tensor:
    """Return x, rotated, in its dtype."""
    x, cos, sin, position_ids, offset, inverse = call
    if position_ids is None:
        cos, sin = cos[offset : offset + x.shape[2]], sin[offset : offset + x.shape[2]]
    else:
        # [B, T, R/2] needs an axis for the heads, [T, R/2] does not.
        cos, sin = cos[position_ids], sin[position_ids]
        if position_ids.dim() == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    cos, sin = cos.to(x.dtype), (-sin if inverse else sin).to(x.dtype)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*rotated, rest) if rest.shape[-1] else rotated, dim=-1)

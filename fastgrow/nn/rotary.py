"""Table of rotary angles, which all blocks of a decoder share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgrow.ops import RopeTable, rope_table


class RotaryTable(nn.Module):
    """Cosines and sines for positions 0 … max_seq_len − 1.

    They stay float32 when the module is cast, because rounded angles would blur distant positions.
    If the module is created on the meta device, they are created on the CPU.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_seq_len: int, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.max_seq_len, self.head_dim, self.base = max_seq_len, head_dim, base
        device = torch.get_default_device()
        self._fill(torch.device("cpu") if device.type == "meta" else device)

    def forward(self, length: int) -> RopeTable:
        """Return cosines and sines of the first `length` positions, each [length, head_dim / 2]."""
        return self.cos[:length], self.sin[:length]

    def _fill(self, device: torch.device) -> None:
        cos, sin = rope_table(self.max_seq_len, self.head_dim, base=self.base, device=device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        super()._apply(fn, recurse)
        self._fill(self.cos.device)
        return self

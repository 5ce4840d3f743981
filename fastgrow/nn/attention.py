"""Causal self-attention with rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.nn.cache import LayerCache
from fastgrow.ops import RopeTable


class CausalSelfAttention(nn.Module):
    """Causal multi-head self-attention with input and output projections.

    The three input projections are one matrix: first the rows of the queries' heads, then those of
    the keys' and of the values'.

    Args:
        d_model: width of input and output.
        n_head: number of query heads.
        n_kv_head: number of key/value heads, a divisor of n_head; None for n_head.
        bias: whether both projections have biases.

    Shapes:
        x [B, T, d_model] → [B, T, d_model].
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        n_kv_head: int | None = None,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_head = n_head
        self.n_kv_head = n_head if n_kv_head is None else n_kv_head
        self.head_dim = d_model // n_head
        width = (n_head + 2 * self.n_kv_head) * self.head_dim
        self.qkv = nn.Linear(d_model, width, bias, device, dtype)
        self.out = nn.Linear(n_head * self.head_dim, d_model, bias, device, dtype)

    def forward(
        self, x: Tensor, rope: RopeTable | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Apply self-attention.

        Args:
            x: [B, T, d_model].
            rope: cosines and sines for positions from 0 to the last token's.
            cache: keys and values of earlier tokens; those of `x` are added.
        """
        batch, length, _ = x.shape
        # All sizes are explicit, because view cannot infer a size for an empty tensor.
        n_heads = self.n_head + 2 * self.n_kv_head
        heads = self.qkv(x).view(batch, length, n_heads, self.head_dim).transpose(1, 2)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        if cache is not None:
            if rope is not None:
                k = ops.rope(k, rope, offset=cache.length)
            k, v = cache.append(k, v)
        y = ops.attention(q, k, v, rope=rope, k_rotated=cache is not None)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.out.in_features))

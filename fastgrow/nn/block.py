"""One layer of the stack: the unit of growth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgrow.nn.attention import CausalSelfAttention
from fastgrow.nn.cache import LayerCache
from fastgrow.nn.config import DecoderConfig
from fastgrow.nn.draw import draw_normal
from fastgrow.nn.mlp import MLP
from fastgrow.nn.norm import make_norm
from fastgrow.ops import RopeTable


class Block(nn.Module):
    """Pre-norm Transformer block.

        x ← x + attention(norm(x));  x ← x + mlp(norm(x))

    Shapes:
        x [B, T, d_model] → [B, T, d_model].
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = config.d_model
        self.attention_norm = make_norm(config.norm, width, device=device, dtype=dtype)
        self.attention = CausalSelfAttention(
            width,
            config.n_head,
            config.kv_heads,
            bias=config.attention_bias,
            device=device,
            dtype=dtype,
        )
        self.mlp_norm = make_norm(config.norm, width, device=device, dtype=dtype)
        self.mlp = MLP(
            width,
            config.mlp_width,
            activation=config.activation,
            bias=config.mlp_bias,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, rope: RopeTable | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        update = self.attention(self.attention_norm(x), rope, cache)
        normalised, x = self.mlp_norm(update, residual=x)
        return self.mlp(normalised, residual=x)

    @property
    def residual_projections(self) -> tuple[nn.Linear, nn.Linear]:
        """The two layers that write into the residual stream."""
        return self.attention.out, self.mlp.down

    @torch.no_grad()
    def initialise(self, std: float, depth: int, generator: torch.Generator | None = None) -> None:
        """Draw normal weights as GPT-2 does; biases become 0, norms 1.

        Args:
            std: standard deviation; that of the residual projections is std / √(2 · depth), so that
                the stream's variance does not grow with the number of blocks.
            depth: blocks in the stack.
            generator: source of randomness; torch's global one without.
        """
        initialise_linears(self, std, generator)
        for projection in self.residual_projections:
            draw_normal(projection.weight, std / math.sqrt(2 * depth), generator)
        for norm in (self.attention_norm, self.mlp_norm):
            nn.init.ones_(norm.weight)
            if getattr(norm, "bias", None) is not None:
                nn.init.zeros_(norm.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def make_identity(self) -> None:
        """Zero both residual projections: the block passes its input through unchanged.

        The norms keep their weights; zeroing those instead would leave the projections without a
        gradient.
        """
        for projection in self.residual_projections:
            nn.init.zeros_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)


@torch.no_grad()
def initialise_linears(
    module: nn.Module, std: float, generator: torch.Generator | None = None
) -> None:
    """Draw the weights of all linear layers from a normal distribution and zero their biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            draw_normal(layer.weight, std, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

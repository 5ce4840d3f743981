"""Transformer block, the unit of growth."""

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
    """Pre-norm Transformer block: attention and MLP, each with a residual connection.

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
        """The two linear layers whose outputs are added to the residual stream."""
        return self.attention.out, self.mlp.down

    @torch.no_grad()
    def initialise(self, std: float, depth: int, generator: torch.Generator | None = None) -> None:
        """Initialise weights from a normal distribution as in GPT-2, biases with 0, norms with 1.

        Args:
            std: standard deviation; that of the residual projections is std / √(2 · depth), so that
                the variance of the residual stream does not grow with the number of blocks.
            depth: number of blocks of the model.
            generator: random number generator; torch's global one by default.
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
        """Zero both residual projections, so that the block returns its input unchanged.

        The norms keep their weights: if these were zeroed instead, the projections would get no
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
    """Initialise all linear layers: weights from a normal distribution, biases with 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            draw_normal(layer.weight, std, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

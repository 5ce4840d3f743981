"""Drawing weights at random, the same on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def draw_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor from a normal distribution of mean 0, in place, as `draw` does."""
    return draw(weight, lambda x: nn.init.normal_(x, 0.0, std, generator), generator)


@torch.no_grad()
def draw(
    weight: Tensor, fill: Callable[[Tensor], object], generator: torch.Generator | None
) -> Tensor:
    """Fill a tensor at random, in place.

    Numbers are drawn where the generator is, without one on the CPU: a seed gives the same weights
    on every device.
    """
    # On the meta device there is nothing to fill, and torch would load its compiler to say so.
    if weight.is_meta:
        return weight
    drawn = weight
    place = torch.device("cpu") if generator is None else generator.device
    if weight.device.type != place.type:
        drawn = torch.empty_like(weight, device=place)
    fill(drawn)
    return weight if drawn is weight else weight.copy_(drawn)

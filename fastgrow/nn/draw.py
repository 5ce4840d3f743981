"""Random initialisation of weights, with the same result on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def draw_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor in place from a normal distribution of mean 0; see `draw`."""
    return draw(weight, lambda x: nn.init.normal_(x, 0.0, std, generator), generator)


@torch.no_grad()
def draw(
    weight: Tensor, fill: Callable[[Tensor], object], generator: torch.Generator | None
) -> Tensor:
    """Fill a tensor in place with random numbers.

    The numbers are drawn on the generator's device, or on the CPU if there is no generator, so that
    a seed gives the same weights on every device.
    """
    # On the meta device there is nothing to fill, and torch would import its compiler.
    if weight.is_meta:
        return weight
    drawn = weight
    source = torch.device("cpu") if generator is None else generator.device
    if weight.device.type != source.type:
        drawn = torch.empty_like(weight, device=source)
    fill(drawn)
    return weight if drawn is weight else weight.copy_(drawn)

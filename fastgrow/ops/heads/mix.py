"""Mixing weights of several heads, multiplied into the h of each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe

Mix = Tensor | Sequence[float]
Heads = tuple[list[Tensor], list[Tensor], Tensor | None]  # h, weight and bias of a call


def mixed(
    name: str,
    hidden: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    mix: Mix | None,
    targets: Tensor,
) -> Heads:
    """h, weight and bias of the weighted sum of several heads, which have been checked.

    Raises:
        ArgumentError: `mix` is of another length, shape or device.
    """
    count = len(hidden)
    shares: list[Any]
    per_row = isinstance(mix, Tensor) and mix.dim() > 1
    if isinstance(mix, Tensor):
        of_rows = (*targets.shape, count)
        if tuple(mix.shape) not in ((count,), of_rows) or mix.device != targets.device:
            expected = f"of shape [{count}] or {list(of_rows)} on {targets.device}"
            raise argument_error(name, "mix", expected, describe(mix))
        shares = list(mix.reshape(-1, count).split(1, dim=1) if per_row else mix.unbind())
    else:
        shares = [1 / count] * count if mix is None else list(mix)
        if len(shares) != count:
            raise argument_error(name, "mix", f"of {count} numbers, one for each h", len(shares))
    heads = [
        head
        for head in zip(hidden, weights, biases, shares, strict=True)
        if isinstance(head[3], Tensor) or head[3] != 0
    ] or [(hidden[0], weights[0], biases[0], 0.0)]
    h = [_folded(x.reshape(-1, x.shape[-1]), share, w) for x, w, _, share in heads]
    weights = [w for _, w, _, _ in heads]
    given = [(b, share) for _, _, b, share in heads if b is not None]
    if not given:
        return h, weights, None
    if not per_row:
        scaled = [_scaled(b, share) for b, share in given]
        return h, weights, functools.reduce(torch.add, scaled)
    # Biases that each row weights in its own way are one more product, of their number's width.
    of_bias = torch.stack([b for b, _ in given], dim=1)
    columns = torch.cat([share for _, share in given], dim=1)
    return [*h, columns.to(of_bias.dtype)], [*weights, of_bias], None


def is_wider(h: Tensor, weight: Tensor) -> bool:
    """Whether h is float32 beside a weight of half precision."""
    half = (torch.bfloat16, torch.float16)
    return h.dtype == torch.float32 and weight.dtype in half and weight.device == h.device


def _folded(h: Tensor, share: Tensor | float, weight: Tensor) -> Tensor:
    """A head's input with its share, rounded once; to the weight's dtype where that is narrower."""
    scaled = _scaled(h, share)
    return scaled.to(weight.dtype) if is_wider(h, weight) else scaled


def _scaled(x: Tensor, share: Tensor | float) -> Tensor:
    if isinstance(share, Tensor):
        # Numbers stay where the share is 0, for its gradient; 0 · inf would be NaN.
        x = torch.where(share == 0, x.nan_to_num(0.0, 0.0, 0.0), x)
    elif share == 1:
        return x
    return (x * share).to(x.dtype)

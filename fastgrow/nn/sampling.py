"""Choosing the next token from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import ConfigError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse settings that no distribution has.

    Raises:
        ConfigError: the message names the setting.
    """
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"generate: temperature must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"generate: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"generate: top_p must be above 0 and at most 1, got {top_p}")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest of [B, V] logits to −∞; exactly k stay, ties broken by order."""
    values, places = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, places, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set all but the nucleus of [B, V] logits to −∞.

    The nucleus is the smallest set of most likely tokens whose probabilities reach p (Holtzman et
    al., arXiv 1904.09751); it has at least one.
    """
    ordered, places = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(before >= p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, places, ordered)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: [B, V] float.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw from the k most likely alone.
        top_p: draw from the nucleus of this probability, after `top_k`.
        generator: source of randomness, on the device of `logits`.

    Returns:
        [B] int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)

"""Sample the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow import ops
from fastgrow.errors import ArgumentError


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest of [B, V] logits to −∞; exactly k remain, even among equals."""
    values, places = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, places, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set all but the nucleus of [B, V] logits to −∞.

    The nucleus is the smallest set of most likely tokens whose probabilities add up to at least p
    (Holtzman et al., arXiv 1904.09751); it has at least one token.
    """
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
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
    """Sample one token per row.

    Args:
        logits: [B, V] float.
        temperature: divides the logits; 0 for the most likely token.
        top_k: sample only from the k most likely tokens.
        top_p: sample only from the nucleus of this probability, after `top_k`.
        generator: random number generator on the device of `logits`.

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


@dataclass(frozen=True)
class Sampler:
    """Sampling options and the random number generator.

    Args:
        temperature, top_k, top_p: as for `sample`.
        generator: random number generator; torch's global one by default.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether tokens are sampled from the unchanged distribution of the model."""
        return self.temperature == 1 and self.top_k is None and self.top_p in (None, 1)

    def __call__(self, logits: Tensor) -> Tensor:
        """Sample one token for each row of logits [B, V]; return [B] int64."""
        return sample(
            logits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            generator=self.generator,
        )

    def of_sum(self, logits: Sequence[Tensor], factors: Sequence[float] | Tensor) -> Tensor:
        """Sample one token per row from Σ_k c_k · z_k, without storing the sum.

        Args:
            logits: z_k, K tensors [B, V] of one dtype.
            factors: c_k, K numbers or [B, K].

        Returns:
            [B] int64.

        Raises:
            ArgumentError: a row has no distribution: its sums contain NaN or +inf, or are all −inf.
        """
        seed = 0
        if self.temperature > 0:
            device = None if self.generator is None else self.generator.device
            numbers = torch.randint(1 << 62, (1,), generator=self.generator, device=device)
            seed = int(numbers)
        tokens = ops.mean_sample(
            logits,
            factors,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )
        if bool((tokens < 0).any()):
            raise ArgumentError(
                f"generate: row {int((tokens < 0).nonzero()[0])} has no distribution to draw "
                "from; its logits have NaN, +inf or nothing but -inf"
            )
        return tokens

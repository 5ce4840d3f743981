"""`Adapter`: a trained low-rank correction of the merged logits; all experts stay frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastgrow._checked import NonNegativeFloat, PositiveInt, check_types
from fastgrow.compose.rules import LogitRule, Rule
from fastgrow.compose.weights import checked_weights, listed, normalized, weights_in_order
from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, LMHead


@dataclass(frozen=True)
class Adapter(LogitRule):
    """Mean of the logits plus a low-rank function of all experts' hidden states.

    z = Σ_k w_k · z_k + U · D · [h₁ … h_K]

    The ensemble creates D [rank, Σ d_k] and U [V, rank] when the rule is set. U is initialised to
    zero, so that the rule starts as the mean. `tune(…, what="adapter")` trains both. This is the
    paper's "minimal fine-tuning of the output layer" (arXiv 2507.07129) with frozen experts.

    Args:
        rank: rank of the low-rank term, at least 1.
        weights: w_k by expert name, each at least 0, divided by their sum; equal if not given.
        experts: names of the experts whose hidden states are the input of the low-rank term, in
            order; set by the ensemble.

    Raises:
        ConfigError: the rank is below 1, or a weight is negative.
    """

    kind = "adapter"

    rank: PositiveInt
    weights: Mapping[str, NonNegativeFloat] | None = None
    experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_weights(self.weights, "Adapter"))
        object.__setattr__(self, "experts", tuple(self.experts))
        check_types(self, plain=True)

    def coefficients(self, names: Sequence[str]) -> list[float]:
        if self.experts and tuple(names) != self.experts:
            raise ConfigError(
                f"Adapter: it was made for the experts {listed(self.experts)}, "
                f"not {listed(names)}; pass another rule, or a new Adapter({self.rank}) and tune it"
            )
        if self.weights is None:
            return [1 / len(names)] * len(names)
        return normalized(weights_in_order(self.weights, names, "Adapter"), "Adapter")

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        return replace(self, weights=weights)

    def renamed(self, old: str, new: str) -> Self:
        experts = tuple(new if name == old else name for name in self.experts)
        weights = self.weights
        if weights is not None:
            weights = {new if name == old else name: w for name, w in weights.items()}
        return replace(self, experts=experts, weights=weights)


class LowRank(nn.Module):
    """Trainable parameters of the rule `Adapter`.

    Args:
        widths: d_k, the width of each expert's hidden states.
        rank: rank of the term.
        vocab_size: V, the number of token ids.

    Shapes:
        hidden states [..., d_k] of K experts → logits [..., V].
    """

    def __init__(
        self,
        widths: Sequence[int],
        rank: int,
        vocab_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(sum(widths), rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, vocab_size, bias=False, device=device, dtype=dtype)
        nn.init.zeros_(self.up.weight)

    def features(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return D · [h₁ … h_K], [..., rank], in the dtype of the hidden states."""
        together = torch.cat(list(hidden), dim=-1)
        low: Tensor = self.down(together.to(self.down.weight.dtype))
        return low.to(together.dtype)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.up(self.features(hidden))
        return logits


def check_adapted(experts: Sequence[tuple[str, Any]]) -> None:
    """Check that all experts provide hidden states of one dtype.

    Raises:
        ConfigError: an expert is not a decoder with a plain head, or the dtypes differ.
    """
    dtypes = set()
    for name, model in experts:
        if type(model) is not Decoder or type(model.lm_head) is not LMHead:
            raise ConfigError(
                f"Adapter: it needs the hidden states of every expert, but expert {name!r} is a "
                f"{type(model).__name__}; expected a Decoder"
            )
        dtypes.add(model.lm_head.weight.dtype)
    if len(dtypes) > 1:
        raise ConfigError(f"Adapter: the experts' dtypes differ: {sorted(map(str, dtypes))}")


def make_low_rank(models: Sequence[Decoder], rank: int) -> LowRank:
    """Return a new low-rank term over the hidden states of these models."""
    like = models[0].lm_head.weight
    widths = [model.lm_head.weight.shape[1] for model in models]
    return LowRank(widths, rank, like.shape[0], device=like.device, dtype=like.dtype)

"""`TopK`: the experts that explain the text best, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgrow._checked import PositiveInt, check_types
from fastgrow.compose.posterior import Posterior
from fastgrow.compose.rules import RuleState, Tokens


@dataclass(frozen=True, init=False)
class TopK(Posterior):
    """`Posterior`, at each token only over its k most probable experts, their weights renormalised.

    Sparse mixtures of experts trained apart lose little and need not run the rest (Gururangan et
    al. 2023, arXiv 2303.14177, §4). Every expert is still run here, since its evidence may turn.

    Args:
        k: how many experts speak at a token, at least 1; all of them, where there are fewer.
        weights, forgetting, temperature: of `Posterior`.

    Raises:
        ConfigError: k is below 1, or as `Posterior`.
    """

    kind = "top_k"

    k: PositiveInt = 1

    def __init__(
        self,
        k: int,
        weights: Mapping[str, float] | None = None,
        forgetting: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "forgetting", forgetting)
        object.__setattr__(self, "temperature", temperature)
        self.__post_init__()
        check_types(self, plain=True)

    def log_weights(
        self,
        names: Sequence[str],
        tokens: Tokens,
        scores: Tensor | None = None,
        state: RuleState | None = None,
    ) -> Tensor:
        weights = super().log_weights(names, tokens, scores, state)
        # Before anything has been read all may weigh the same: then the first named are taken.
        best = weights.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        silenced = torch.full_like(weights, float("-inf")).scatter(
            -1, best, weights.gather(-1, best)
        )
        return torch.log_softmax(silenced, dim=-1)

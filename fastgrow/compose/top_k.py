"""`TopK`: a mixture of the k experts that predicted the text best."""

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
    """`Posterior` restricted to the k most probable experts at each token, weights renormalised.

    Sparse mixtures of separately trained experts lose little quality, and the other experts need
    not run (Gururangan et al. 2023, arXiv 2303.14177, §4). Here every expert is run, because the
    weights of later tokens depend on its predictions.

    Args:
        k: number of experts with a nonzero weight at a token, at least 1; if there are fewer
            experts, all are used.
        weights, forgetting, temperature: as for `Posterior`.

    Raises:
        ConfigError: k is below 1, or as for `Posterior`.
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
        # Before the first token all weights may be equal; the stable sort then selects the first.
        best = weights.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        masked = torch.full_like(weights, float("-inf")).scatter(-1, best, weights.gather(-1, best))
        return torch.log_softmax(masked, dim=-1)

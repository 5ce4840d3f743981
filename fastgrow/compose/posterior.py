"""`Posterior`: a mixture of probabilities whose weights depend on the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from fastgrow import ops
from fastgrow._checked import PositiveFloat, check_types
from fastgrow.compose.mixing import decayed_sums
from fastgrow.compose.rules import PriorRule, RuleState, Tokens

# Replaces the log-probability −inf of a token whose probability under an expert is zero: the weight
# of the expert becomes zero as well, and the weights stay defined if this is true of all experts.
IMPOSSIBLE = -1e6


@dataclass
class PosteriorState(RuleState):
    """State of `Posterior` in incremental decoding.

    Attributes:
        evidence: sum of the past scores, [B, K] float64; None before the first token.
        forecasts: each expert's logits of the next token, K tensors [B, V].
    """

    evidence: Tensor | None = None
    forecasts: tuple[Tensor, ...] = field(default_factory=tuple)

    def repeated(self, times: int) -> PosteriorState:
        evidence = self.evidence
        return PosteriorState(
            None if evidence is None else evidence.repeat_interleave(times, dim=0),
            tuple(forecast.repeat_interleave(times, dim=0) for forecast in self.forecasts),
        )


@dataclass(frozen=True)
class Posterior(PriorRule):
    """Mixture of probabilities, weighted by how well each expert predicted the document so far.

    p(x) = Σ_k w_k(t) · p_k(x | x_<t), where by Bayes' rule
    w_k(t) ∝ prior_k · (Π_{s<t} p_k(x_s | x_<s)^(γ^(t−1−s)))^(1/τ)

    With γ = τ = 1 this is exact Bayesian averaging, and the probability of a document is
    Σ_k prior_k · Π_t p_k(x_t | x_<t). Cluster-branch-train-merge (Gururangan et al. 2023, "Scaling
    Expert Language Models with Unsupervised Domain Discovery") also weights experts by a posterior,
    which it computes from clusters of text; DEMix (Gururangan et al. 2022) updates the posterior by
    the experts' likelihoods, as here.

    The product is over the current document: it restarts at every `<s>`, and `<s>` and padding are
    not part of it. For a window that starts inside a document, the first weights are the prior.

    Args:
        weights: the prior by expert name, each at least 0, divided by their sum; equal if not
            given.
        forgetting: γ in (0, 1]; below 1, old tokens lose weight, so that the mixture adapts if the
            text changes its language. The time constant is 1/(1 − γ) tokens.
        temperature: τ > 0; above 1, the weights change more slowly.

    Raises:
        ConfigError: a weight is negative or not a finite number, all are zero, or γ or τ is out of
            range.
    """

    kind = "posterior"
    reads_text: ClassVar[bool] = True

    forgetting: Annotated[float, Meta(gt=0, le=1)] = 1.0
    temperature: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self)

    def new_state(self) -> PosteriorState:
        return PosteriorState()

    def log_weights(
        self,
        names: Sequence[str],
        tokens: Tokens,
        scores: Tensor | None = None,
        state: RuleState | None = None,
    ) -> Tensor:
        if scores is None:
            raise ValueError("Posterior: the weights depend on scores [B, T, K]; got none")
        log_prior = self.log_prior(names, tokens.ids.device)
        # float64, since differences of sums over a long text matter; the tensors are small.
        values = scores.double().clamp(min=IMPOSSIBLE)
        values = values.masked_fill(tokens.silent[..., None] | log_prior.isneginf(), 0.0)
        carry = torch.full_like(values[..., 0], self.forgetting)
        carry = carry.masked_fill(tokens.silent, 1.0).masked_fill(tokens.starts, 0.0)
        past = state.evidence if isinstance(state, PosteriorState) else None
        initial = torch.zeros_like(values[:, 0]) if past is None else past
        evidence = decayed_sums(values, carry, initial)
        if isinstance(state, PosteriorState):
            state.evidence = evidence[:, -1]
        return torch.log_softmax(log_prior + evidence / self.temperature, dim=-1)

    def weigh_text(
        self,
        names: Sequence[str],
        tokens: Tokens,
        following: Tensor,
        last: Sequence[Tensor],
        state: RuleState | None = None,
    ) -> Tensor:
        first = torch.zeros_like(tokens.ids[:, :1], dtype=following.dtype)
        first = first[..., None].expand(-1, -1, len(names))
        if isinstance(state, PosteriorState):
            if state.forecasts:
                ids = tokens.ids[:, 0]
                scores = [ops.mean_log_softmax_gather([z], ids) for z in state.forecasts]
                first = torch.stack(scores, dim=-1)[:, None]
            # Clones, because views would keep the logits of the whole text in memory.
            state.forecasts = tuple(z.clone() for z in last)
        return self.log_weights(names, tokens, torch.cat([first, following], dim=1), state)

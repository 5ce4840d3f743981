"""`Posterior`: a mixture of experts whose weights follow the text."""

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

# An expert that called a token impossible has a log-probability of −inf there. This finite stand-in
# rules it out just as well, and weights stay defined where every expert was wrong.
IMPOSSIBLE = -1e6


@dataclass
class PosteriorState(RuleState):
    """The memory of `Posterior`.

    evidence: the sum of past scores, [B, K] float64; None before the first token.
    forecasts: each expert's logits of the coming token, K tensors [B, V].
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
    """A mixture weighted by how well each expert predicted the document so far.

    p(x) = Σ_k w_k(t) · p_k(x | x_<t), where by Bayes' rule
    w_k(t) ∝ prior_k · (Π_{s<t} p_k(x_s | x_<s)^(γ^(t−1−s)))^(1/τ)

    With γ = τ = 1 this is exact Bayesian averaging, and the probability of a document is
    Σ_k prior_k · Π_t p_k(x_t | x_<t). The paper of cluster-branch-train-merge (Gururangan et al.
    2023, "Scaling Expert Language Models with Unsupervised Domain Discovery") weights experts by
    a posterior in the same way, theirs coming from clusters of text; the running posterior by the
    experts' own likelihood is DEMix's (Gururangan et al. 2022).

    The product runs over the present document: every `<s>` begins it anew, and `<s>` and padding
    themselves count for nothing. A window that begins within a document begins with the prior.

    Args:
        weights: the prior by expert name, each at least 0; divided by their sum. Equal if not
            given.
        forgetting: γ in (0, 1]; below 1, old tokens lose weight, and the mixture follows a text
            that changes language on its way. 1/(1 − γ) is its memory in tokens.
        temperature: τ > 0; above 1, the weights move more slowly towards one expert.

    Raises:
        ConfigError: a weight is negative or not a finite number, or all are zero; γ or τ is out
            of range.
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
            raise ValueError("Posterior: weights follow from scores [B, T, K]; got none")
        log_prior = self.log_prior(names, tokens.ids.device)
        # Sums over a long text of nats that cancel in the end: float64 costs nothing at this size.
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
            # Copies, since a view would keep the logits of the whole text.
            state.forecasts = tuple(z.clone() for z in last)
        return self.log_weights(names, tokens, torch.cat([first, following], dim=1), state)

"""Rules: how the experts' predictions of the next token are merged into one.

A rule is a small immutable dataclass. Its input is each expert's logits, or the log-probabilities
of some tokens under each expert; the ensemble computes these, and a rule has no access to the
models. There are two families:

- `LogitRule`: the merged logits are a weighted sum of the experts' logits. Linear heads can be
  applied to the concatenated hidden states, so that a loss needs no expert's logits.
- `ProbabilityRule`: the merged probabilities are a mixture of the experts' probabilities, with
  weights that may depend on the text so far. A loss needs only the log-probabilities of the targets
  (and of the text) under each expert.

Weights are stored in the rule, by expert name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fastgrow import ops
from fastgrow._checked import NonNegativeFloat
from fastgrow.compose.mixing import cut, in_one_dtype, logit_sum, scores_within
from fastgrow.compose.weights import (
    checked_weights,
    normalized,
    weights_in_order,
    with_new_name,
    without_name,
)
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class Tokens:
    """The input tokens of a call.

    Args:
        ids: [B, T] int64.
        starts: [B, T] bool, True where a new document starts (`<s>`).
        silent: [B, T] bool, True for tokens that are not text (`<s>` and padding).
    """

    ids: Tensor
    starts: Tensor
    silent: Tensor

    @classmethod
    def of(cls, ids: Tensor, bos_id: int | None = None, pad_id: int | None = None) -> Tokens:
        """Mark starts and special tokens; without special ids the whole text is one document."""
        nowhere = torch.zeros_like(ids, dtype=torch.bool)
        starts = nowhere if bos_id is None else ids == bos_id
        silent = starts if pad_id is None else starts | (ids == pad_id)
        return cls(ids, starts, silent)


class RuleState:
    """State of a rule between two calls of incremental decoding; empty for most rules."""

    def repeated(self, times: int) -> RuleState:
        """Return a copy in which each sequence is repeated `times` times."""
        return RuleState()


class Rule(ABC):
    """Base of all rules. Subclasses are frozen dataclasses."""

    kind: ClassVar[str]
    """Name of the rule in config.json."""
    reads_text: ClassVar[bool] = False
    """Whether the weights depend on how well each expert predicted the text so far."""
    registry: ClassVar[dict[str, type[Rule]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            Rule.registry[cls.kind] = cls

    @abstractmethod
    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError if the rule does not fit the experts `names`."""

    @abstractmethod
    def merge(
        self,
        names: Sequence[str],
        logits: Sequence[Tensor],
        tokens: Tokens,
        state: RuleState | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Merge K tensors of logits [B, T, V] into one.

        Args:
            names: the experts' names, in the order of `logits`.
            logits: each expert's logits at each position of `tokens`.
            tokens: the input tokens.
            state: state after the tokens before them, updated in place; None if these tokens are
                the whole text.
            last_only: merge the last position only. Unless `reads_text`, the logits of the last
                position are then sufficient.

        Returns:
            [B, T, V], or [B, 1, V] with `last_only`: logits or log-probabilities, depending on the
            rule.
        """

    @abstractmethod
    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        """Return a rule of this family with these weights."""

    def without(self, name: str) -> Rule:
        """Return this rule without the expert `name`."""
        return self

    def renamed(self, old: str, new: str) -> Rule:
        """Return this rule with the expert `old` renamed to `new`."""
        return self

    def new_state(self) -> RuleState:
        """Return an empty state for incremental decoding."""
        return RuleState()

    def to_config(self) -> dict[str, Any]:
        """Return the rule as JSON values, for `from_config`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_config(config: Any) -> Rule:
        """Create the rule from the values that `to_config` returned.

        Raises:
            ConfigError: the rule or one of its options is unknown.
        """
        kind = config.get("kind") if isinstance(config, Mapping) else None
        if not isinstance(kind, str) or kind not in Rule.registry:
            raise ConfigError(
                f"rule {config!r} is unknown; expected an object whose 'kind' is one of "
                f"{', '.join(sorted(Rule.registry))}"
            )
        options = {key: value for key, value in config.items() if key != "kind"}
        try:
            return Rule.registry[kind](**options)
        except TypeError as error:
            raise ConfigError(f"rule {kind}: {error}") from None


class LogitRule(Rule):
    """Base of rules whose merged logits are z = Σ_k c_k · z_k."""

    @abstractmethod
    def coefficients(self, names: Sequence[str]) -> list[float]:
        """Return c_k of each expert, in the order of `names`."""

    def mix(self, names: Sequence[str], ids: Tensor) -> list[float] | Tensor:
        """Return c_k for ids [B, T]: K numbers, or [B, T, K] if the rows differ."""
        return self.coefficients(names)

    def check(self, names: Sequence[str]) -> None:
        self.coefficients(names)

    def merge(
        self,
        names: Sequence[str],
        logits: Sequence[Tensor],
        tokens: Tokens,
        state: RuleState | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        mix = self.mix(names, tokens.ids[:, -1:] if last_only else tokens.ids)
        return logit_sum(cut(logits, last_only), mix)

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        return Weighted(weights)


class ProbabilityRule(Rule):
    """Base of rules with p = Σ_k w_k · p_k, where w_k ≥ 0 and Σ_k w_k = 1."""

    @abstractmethod
    def log_weights(
        self,
        names: Sequence[str],
        tokens: Tokens,
        scores: Tensor | None = None,
        state: RuleState | None = None,
    ) -> Tensor:
        """Return log w_k for the prediction at each position.

        Args:
            names: the experts' names.
            tokens: the input tokens.
            scores: log p_k(token | the tokens before it) of each token, [B, T, K]; zero for a token
                that was not predicted. Required if `reads_text`.
            state: as in `merge`; only its weights are updated.

        Returns:
            [K] or [B, T, K], on the device of `tokens`.
        """

    def weigh_text(
        self,
        names: Sequence[str],
        tokens: Tokens,
        following: Tensor,
        last: Sequence[Tensor],
        state: RuleState | None = None,
    ) -> Tensor:
        """Return log w_k for a rule with `reads_text`, and update its state.

        Args:
            names: the experts' names.
            tokens: the input tokens.
            following: log p_k of each token but the first, given those before it, [B, T − 1, K].
            last: each expert's logits at the last position, K tensors [B, V].
            state: as in `merge`.

        Returns:
            [B, T, K], on the device of `tokens`.
        """
        raise TypeError(f"{type(self).__name__}: its weights do not depend on the text")

    def merge(
        self,
        names: Sequence[str],
        logits: Sequence[Tensor],
        tokens: Tokens,
        state: RuleState | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        if not tokens.ids.shape[1]:
            # There are no positions, so no weights are needed.
            return ops.probability_mean(in_one_dtype(logits))
        if self.reads_text:
            following = torch.stack([scores_within(z, tokens.ids) for z in logits], dim=-1)
            last = [z[:, -1] for z in logits]
            log_weights = self.weigh_text(names, tokens, following, last, state)
        else:
            log_weights = self.log_weights(names, tokens)
        if last_only and log_weights.dim() > 1:
            log_weights = log_weights[:, -1:]
        return ops.probability_mean(in_one_dtype(cut(logits, last_only)), log_weights=log_weights)


@dataclass(frozen=True)
class Mean(LogitRule):
    """Arithmetic mean of the experts' logits: z = (1/K) · Σ_k z_k.

    The paper's rule (arXiv 2507.07129, composition on a shared frozen substrate). The merged
    probabilities are the normalised geometric mean of the experts' probabilities.
    """

    kind = "mean"

    def coefficients(self, names: Sequence[str]) -> list[float]:
        return [1 / len(names)] * len(names)


@dataclass(frozen=True)
class Weighted(LogitRule):
    """Weighted mean of the experts' logits: z = Σ_k w_k · z_k.

    Args:
        weights: w_k by expert name, one for every expert. With a weight below zero, tokens that the
            expert predicts become less likely.
        normalize: whether to divide the weights by their sum, so that z is a mean. This has no
            effect on weights that sum to 1, until an expert is removed. If False, the weights are
            used unchanged; their sum is an inverse temperature of the merged distribution, which
            becomes sharper above 1 and flatter below.

    Raises:
        ConfigError: a weight is not a finite number, or all are zero.
    """

    kind = "weighted"

    weights: Mapping[str, float]
    normalize: bool = True

    def __post_init__(self) -> None:
        checked = checked_weights(self.weights, "Weighted", negative=True)
        object.__setattr__(self, "weights", checked)

    def coefficients(self, names: Sequence[str]) -> list[float]:
        weights = weights_in_order(self.weights, names, "Weighted")
        return normalized(weights, "Weighted") if self.normalize else weights

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        return replace(self, weights=weights)

    def without(self, name: str) -> Rule:
        return replace(self, weights=without_name(self.weights, name))

    def renamed(self, old: str, new: str) -> Rule:
        return replace(self, weights=with_new_name(self.weights, old, new))


@dataclass(frozen=True)
class PriorRule(ProbabilityRule):
    """Base of probability rules with optional fixed weights; by default all are equal."""

    weights: Mapping[str, NonNegativeFloat] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_weights(self.weights, type(self).__name__))

    def prior(self, names: Sequence[str]) -> list[float]:
        """Return the weights of the experts `names`, which sum to 1."""
        if self.weights is None:
            return [1 / len(names)] * len(names)
        rule = type(self).__name__
        return normalized(weights_in_order(self.weights, names, rule), rule)

    def log_prior(self, names: Sequence[str], device: torch.device) -> Tensor:
        """Return the log of the prior, [K] in float64; −inf for an expert of weight zero."""
        return torch.tensor(self.prior(names), dtype=torch.float64, device=device).log()

    def check(self, names: Sequence[str]) -> None:
        self.prior(names)

    def with_weights(self, weights: Mapping[str, float]) -> Self:
        return replace(self, weights=weights)

    def without(self, name: str) -> Self:
        if self.weights is None:
            return self
        return replace(self, weights=without_name(self.weights, name))

    def renamed(self, old: str, new: str) -> Self:
        if self.weights is None:
            return self
        return replace(self, weights=with_new_name(self.weights, old, new))


@dataclass(frozen=True)
class ProbabilityMean(PriorRule):
    """Arithmetic mean of the experts' probabilities: p = Σ_k w_k · softmax(z_k), w_k = 1/K.

    The linear opinion pool (Stone 1961), also used by ensembles in fairseq and Marian. A token is
    likely if one expert is confident of it; under `Mean` all experts have to agree.

    Args:
        weights: w_k by expert name, each at least 0, divided by their sum; equal if not given.

    Raises:
        ConfigError: a weight is negative or not a finite number, or all are zero.
    """

    kind = "probability_mean"

    def log_weights(
        self,
        names: Sequence[str],
        tokens: Tokens,
        scores: Tensor | None = None,
        state: RuleState | None = None,
    ) -> Tensor:
        return self.log_prior(names, tokens.ids.device)

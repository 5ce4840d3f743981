"""Rules: how several experts' predictions of the next token become one.

A rule is a small immutable value. It sees numbers only (each expert's logits, or the
log-probabilities it gave to some tokens) and never a model; how those numbers are computed is the
ensemble's business. There are two families:

- `LogitRule`: merged logits are a weighted sum of the experts' logits. A linear head commutes with
  that sum, so a loss never needs an expert's own logits.
- `ProbabilityRule`: merged probabilities are a mixture of the experts' probabilities, with weights
  that may depend on the text read so far. A loss needs only the log-probabilities that each expert
  gave to the targets (and to the text).

Weights are keyed by the expert's name and live in the rule alone.
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
    """The tokens that the experts have just read.

    Args:
        ids: [B, T] int64.
        starts: [B, T] bool, where a new document begins (`<s>`).
        silent: [B, T] bool, where a token says nothing about the text (`<s>` and padding).
    """

    ids: Tensor
    starts: Tensor
    silent: Tensor

    @classmethod
    def of(cls, ids: Tensor, bos_id: int | None = None, pad_id: int | None = None) -> Tokens:
        """Mark starts and silent tokens; without special ids the whole text is one document."""
        nowhere = torch.zeros_like(ids, dtype=torch.bool)
        starts = nowhere if bos_id is None else ids == bos_id
        silent = starts if pad_id is None else starts | (ids == pad_id)
        return cls(ids, starts, silent)


class RuleState:
    """What a rule remembers between two calls of incremental decoding; most remember nothing."""

    def repeated(self, times: int) -> RuleState:
        """A copy with each sequence `times` times."""
        return RuleState()


class Rule(ABC):
    """Base of all rules. Subclasses are frozen dataclasses."""

    kind: ClassVar[str]
    """The rule's name in config.json."""
    reads_text: ClassVar[bool] = False
    """Whether merging depends on how well each expert predicted the text so far."""
    registry: ClassVar[dict[str, type[Rule]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            Rule.registry[cls.kind] = cls

    @abstractmethod
    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError unless the rule can serve exactly the experts `names`."""

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
            logits: what each expert predicts after each of `tokens`.
            tokens: the tokens that were read.
            state: what was remembered of the tokens before them, brought up to date here; None if
                these tokens are the whole text.
            last_only: merge the last position alone. A rule that does not read the text can do
                with the last position's logits.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`: logits, or log-probabilities where the rule
            makes them.
        """

    @abstractmethod
    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        """A rule of this family with these weights."""

    def without(self, name: str) -> Rule:
        """This rule once the expert `name` is gone."""
        return self

    def renamed(self, old: str, new: str) -> Rule:
        """This rule once the expert `old` is called `new`."""
        return self

    def new_state(self) -> RuleState:
        """An empty memory for incremental decoding."""
        return RuleState()

    def to_config(self) -> dict[str, Any]:
        """JSON values from which `from_config` makes the rule again."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_config(config: Any) -> Rule:
        """The rule that `to_config` described.

        Raises:
            ConfigError: the rule is unknown, or its options are.
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
    """Merged logits z = Σ_k c_k · z_k."""

    @abstractmethod
    def coefficients(self, names: Sequence[str]) -> list[float]:
        """c_k of each expert, in the order of `names`."""

    def mix(self, names: Sequence[str], ids: Tensor) -> list[float] | Tensor:
        """c_k for the predictions after ids [B, T]: K numbers, or [B, T, K] where rows differ."""
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
    """Merged probabilities p = Σ_k w_k · p_k with w_k ≥ 0 and Σ_k w_k = 1."""

    @abstractmethod
    def log_weights(
        self,
        names: Sequence[str],
        tokens: Tokens,
        scores: Tensor | None = None,
        state: RuleState | None = None,
    ) -> Tensor:
        """log w_k for the prediction made after each token.

        Args:
            names: the experts' names.
            tokens: the tokens that were read.
            scores: log p_k(token | the tokens before it) for each of them, [B, T, K]; zero where
                nothing was predicted. Needed if the rule reads the text.
            state: as in `merge`; of its memory only the weights are brought up to date.

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
        """log w_k for a rule that reads the text; brings its whole memory up to date.

        Args:
            names: the experts' names.
            tokens: the tokens that were read.
            following: log p_k of each token but the first, given those before it, [B, T − 1, K].
            last: each expert's logits after the last token, K tensors [B, V].
            state: as in `merge`.

        Returns:
            [B, T, K], on the device of `tokens`.
        """
        raise TypeError(f"{type(self).__name__}: it does not read the text")

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
            # Nothing was read and nothing is predicted: no weights are needed.
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
    """The arithmetic mean of the experts' logits: z = (1/K) · Σ_k z_k.

    The paper's rule (arXiv 2507.07129, composition on a shared frozen substrate). As
    probabilities it is the normalised geometric mean of the experts' probabilities.
    """

    kind = "mean"

    def coefficients(self, names: Sequence[str]) -> list[float]:
        return [1 / len(names)] * len(names)


@dataclass(frozen=True)
class Weighted(LogitRule):
    """A weighted mean of the experts' logits: z = Σ_k w_k · z_k.

    Args:
        weights: a number for each expert's name; every expert needs one. A weight below zero
            pushes away from what that expert says.
        normalize: divide the weights by their sum, which makes z a mean: with weights that sum to
            1 it changes nothing, and after an expert was removed the others take its share.
            Without it the weights are taken as they are; their sum then sharpens (above 1) or
            flattens the merged distribution as an inverse temperature.

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
    """A probability rule with optional fixed weights; without them the experts share equally."""

    weights: Mapping[str, NonNegativeFloat] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_weights(self.weights, type(self).__name__))

    def prior(self, names: Sequence[str]) -> list[float]:
        """The weights of the experts `names`, summing to 1."""
        if self.weights is None:
            return [1 / len(names)] * len(names)
        rule = type(self).__name__
        return normalized(weights_in_order(self.weights, names, rule), rule)

    def log_prior(self, names: Sequence[str], device: torch.device) -> Tensor:
        """log of the prior, [K] in float64; −inf for an expert of weight zero."""
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
    """The arithmetic mean of the experts' probabilities: p = Σ_k w_k · softmax(z_k), w_k = 1/K.

    The linear opinion pool (Stone 1961), the average that fairseq and Marian ensembles take. One
    confident expert is enough to make a token likely, where `Mean` wants all of them to agree.

    Args:
        weights: other weights than 1/K, by expert name, each at least 0; divided by their sum.

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

"""An ensemble: several models of one vocabulary that speak as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow.compose.adapter import Adapter, LowRank, check_adapted, make_low_rank
from fastgrow.compose.cache import EnsembleCache
from fastgrow.compose.draws import draw_from_experts, is_drawn_from_experts
from fastgrow.compose.experts import (
    Experts,
    check_model,
    check_name,
    check_substrate,
    share_substrate,
)
from fastgrow.compose.losses import ensemble_loss
from fastgrow.compose.parked import ParkedExpert, check_parkable
from fastgrow.compose.predictions import ensemble_prediction
from fastgrow.compose.rules import Mean, Rule, Tokens
from fastgrow.errors import ArgumentError, ConfigError, describe
from fastgrow.evaluation import BitsPerCharacter, bits_per_character
from fastgrow.nn import FrozenEmbedding, LanguageModel, SubstrateLike
from fastgrow.nn.generate import GenerationMixin
from fastgrow.nn.sampling import Sampler


class Ensemble(GenerationMixin, nn.Module):
    """Experts on one frozen substrate, merged by a rule; itself a `LanguageModel`.

    No router and no training: every expert reads every token, so the cost is the sum of theirs
    (arXiv 2507.07129, modular composition). Experts may differ in depth and width, and may be
    ensembles themselves. They hold their common table once: one whose frozen table equals one that
    is here already is made to use that memory.

    Args:
        experts: models by name, at least one; names may have letters, digits, "_" and "-".
        rule: how predictions are merged.

    Attributes:
        experts: the models by name, in order; change them with `add`, `remove` and `rename`.

    Raises:
        ConfigError: a bad name, something that is not a language model, another vocabulary size or
            device, a rule whose weights do not name exactly the experts.
        SubstrateError: experts on different substrates; the message says what differs.
    """

    def __init__(self, experts: Mapping[str, LanguageModel], rule: Rule | None = None) -> None:
        super().__init__()
        if not experts:
            raise ConfigError("Ensemble: expected at least one expert, got none")
        self.experts = Experts()
        for name, model in experts.items():
            self._insert(check_name(name, self.experts), model)
        self.adapter: LowRank | None = None
        self._rule: Rule
        self._take(Mean() if rule is None else rule)

    def forward(
        self, ids: Tensor, cache: EnsembleCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Merged prediction of the next token after each token.

        Args:
            ids: [B, T] int64.
            cache: earlier tokens (`new_cache`); these are added to it.
            last_only: give the last position alone.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`: logits; under a rule that mixes probabilities,
            log-probabilities, in float32 or better.

        Raises:
            ArgumentError: wrong shape, an id out of range, more tokens than max_seq_len or than
                the cache holds, a cache from before the experts changed.
        """
        self._check_ids(ids)
        if cache is not None:
            cache.begin(ids, self.names, self._rule)
        caches = {name: None if cache is None else cache.caches[name] for name in self.names}
        merged = ensemble_prediction(
            self._rule,
            self.experts.items(),
            self._tokens(ids),
            caches,
            None if cache is None else cache.state,
            last_only=last_only,
            adapter=self.adapter,
        )
        if cache is not None:
            cache.length += ids.shape[1]
        return merged

    def next_tokens(self, ids: Tensor, cache: EnsembleCache, sampler: Sampler) -> Tensor:
        """Draw what comes after ids [B, T], without the merged prediction where that is possible.

        Args:
            ids: [B, T] int64.
            cache: earlier tokens; these are added to it.
            sampler: how to draw.

        Returns:
            [B] int64.

        Raises:
            ArgumentError: as `forward`, or a row has no distribution.
        """
        if not is_drawn_from_experts(self._rule, sampler):
            return sampler(self(ids, cache, last_only=True)[:, -1])
        self._check_ids(ids)
        cache.begin(ids, self.names, self._rule)
        drawn = draw_from_experts(
            self._rule, self.experts.items(), self._tokens(ids), cache, sampler, self.adapter
        )
        cache.length += ids.shape[1]
        return drawn

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T] under what `forward` predicts after `ids`.

        Computed without the experts' logits where rule and experts allow it.

        Args:
            ids: [B, T] int64.
            targets: [B, T] int64.
            ignore_index: targets of this value count nothing.
            reduction: `mean` over the targets that count, `sum`, or `none` for [B, T].

        Raises:
            ArgumentError: as `forward`, or a target out of range.
        """
        self._check_ids(ids)
        return ensemble_loss(
            self._rule,
            self.experts.items(),
            self._tokens(ids),
            targets,
            ignore_index=ignore_index,
            reduction=reduction,
            adapter=self.adapter,
        )

    def evaluate(self, data: Any, *, split: str = "test", **options: Any) -> BitsPerCharacter:
        """Bits per character on a text.

        Args:
            data: a token stream, or data with splits such as `fastgrow.TextData`.
            split: which of the splits, `train`, `validation` or `test`.
            options: of `fastgrow.evaluation.bits_per_character`.

        Raises:
            ConfigError: there is no such split.
            SubstrateError: the text was encoded with another substrate.
        """
        stream = data
        if not hasattr(data, "ids"):
            if not hasattr(data, split):
                raise ConfigError(f"evaluate: {type(data).__name__} has no split {split!r}")
            stream = getattr(data, split)
        check_substrate("the text", stream.substrate, "the ensemble", self.substrate)
        return bits_per_character(self, stream, **options)

    def add(self, name: str, model: LanguageModel, rule: Rule | None = None) -> None:
        """Add an expert; it takes part from the next call on.

        Args:
            name: a new name.
            model: any `LanguageModel` of the same vocabulary.
            rule: a rule to go on with, needed where the present one has weights by name.

        Raises:
            ConfigError, SubstrateError: as for the constructor; the ensemble stays as it was.
        """
        check_name(name, self.experts)
        new_rule = self._rule if rule is None else rule
        try:
            _check_rule(new_rule, [*self.experts.items(), (name, model)])
        except ConfigError as error:
            hint = "" if rule is not None else "; pass add(…, rule=…) with all weights"
            raise ConfigError(f"{error}{hint}") from None
        self._insert(name, model)
        self._take(new_rule)

    def remove(self, name: str, rule: Rule | None = None) -> Any:
        """Take an expert out.

        Args:
            name: of the expert.
            rule: a rule to go on with; the present one, without the expert's weight, if not given.

        Returns:
            The model.

        Raises:
            ConfigError: there is no such expert, or no other one.
        """
        model = self.experts[name]
        rest = [expert for expert in self.experts.items() if expert[0] != name]
        if not rest:
            raise ConfigError(f"expert {name!r} is the last one; an ensemble needs at least one")
        new_rule = _check_rule(self._rule.without(name) if rule is None else rule, rest)
        self.experts.pop(name)
        self._take(new_rule)
        return model

    def rename(self, old: str, new: str) -> None:
        """Call an expert by another name; order and weights stay.

        Raises:
            ConfigError: there is no expert `old`, or there is a `new` already.
        """
        check_name(new, self.experts)
        self.experts.rename(old, new)
        self._rule = self._rule.renamed(old, new)

    def offload(self, name: str, folder: Path | str | None = None) -> None:
        """Keep an expert off the device; it comes for the length of each call.

        Args:
            name: of the expert, a `Decoder`.
            folder: where to keep it on the disk; main memory without.

        Raises:
            ConfigError: there is no such expert, it is no decoder, or the rule is an `Adapter`,
                which reads hidden states.
            FileExistsError: the folder holds something that is not a saved model's.
        """
        model = check_parkable(name, self.experts[name])
        if self.adapter is not None:
            raise ConfigError("Adapter: it reads hidden states; its experts stay on the device")
        self.experts.replace(name, ParkedExpert(model, folder))

    def recall(self, name: str) -> None:
        """Bring an expert back to the device to stay.

        Raises:
            ConfigError: there is no such expert, or it was not off the device.
            CheckpointError: its files are missing or damaged.
        """
        parked = self.experts[name]
        if not isinstance(parked, ParkedExpert):
            raise ConfigError(f"expert {name!r} is on the device already")
        model = parked.recall()
        share_substrate(model, self.experts, self.substrate)
        self.experts.replace(name, model)

    def reweight(self, rule: Rule | Mapping[str, float]) -> None:
        """Merge by another rule from the next call on.

        Args:
            rule: a rule; or weights by name for the present one, `Mean` becoming `Weighted`.

        Raises:
            ConfigError: the weights do not name exactly the experts; the rule stays as it was.
        """
        self._take(rule if isinstance(rule, Rule) else self._rule.with_weights(rule))

    def new_cache(self, batch_size: int, max_len: int | None = None) -> EnsembleCache:
        """An empty cache for `batch_size` sequences of at most `max_len` (max_seq_len) tokens."""
        room = max_len or self.max_seq_len
        caches = {name: m.new_cache(batch_size, room) for name, m in self.experts.items()}
        return EnsembleCache(caches, self._rule, batch_size, room)

    def num_parameters(self, *, active: bool = False, include_table: bool = True) -> int:
        """Count numbers; a tensor that several experts share counts once.

        Args:
            active: only those that train.
            include_table: embedding tables too, frozen or not.
        """
        embeddings = {m.address: m for m in self.modules() if isinstance(m, FrozenEmbedding)}
        tables = {p for embedding in embeddings.values() for p in embedding.parameters()}
        counted = [p for p in self.parameters() if p not in tables]
        total = sum(p.numel() for p in counted if p.requires_grad or not active)
        if include_table:
            total += sum(
                embedding.vocab_size * embedding.n_embed
                for embedding in embeddings.values()
                if not active or any(p.requires_grad for p in embedding.parameters())
            )
        return total

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in order."""
        return self.experts.names

    @property
    def rule(self) -> Rule:
        """How predictions are merged; `reweight` changes it."""
        return self._rule

    @property
    def substrate(self) -> SubstrateLike | None:
        """The experts' common substrate."""
        substrates = (model.substrate for model in self.experts.values())
        return next((substrate for substrate in substrates if substrate is not None), None)

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""
        return self.experts.values()[0].vocab_size

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens: the shortest among the experts'."""
        return min(model.max_seq_len for model in self.experts.values())

    @property
    def device(self) -> torch.device:
        """Where the experts are and ids are expected."""
        return self.experts.values()[0].device

    def extra_repr(self) -> str:
        return f"rule={self._rule}"

    def save(self, path: Path | str, *, with_substrate: bool = True) -> None:
        """Write the ensemble into a folder (`fastgrow.compose.files`).

        Args:
            path: the folder.
            with_substrate: False leaves the substrate's files out, for a folder of several models
                that keeps them once; `load` then has to be given the substrate.

        Raises:
            ConfigError: an expert is not one of fastgrow's own models.
            FileExistsError: the folder holds something that is not a saved model's.
            OSError: the disk is full or not writable; what was there before still is.
        """
        from fastgrow.compose.files import save_ensemble

        save_ensemble(self, Path(path), with_substrate=with_substrate)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        substrate: SubstrateLike | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Ensemble:
        """Read an ensemble from a folder.

        Args:
            path: the folder.
            substrate: share this one instead of loading another of the same fingerprint.
            device: where to put the experts; the CPU without.
            dtype: cast the parameters.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit; the message names it.
        """
        from fastgrow.compose.files import load_ensemble

        return load_ensemble(Path(path), substrate=substrate, device=device, dtype=dtype)

    def _take(self, rule: Rule) -> None:
        """Go on under a rule; a new adapter gets its parameters here."""
        rule = _check_rule(rule, self.experts.items())
        if not isinstance(rule, Adapter):
            self.adapter = None
        else:
            there = self._rule if self.adapter is not None else None
            if not (
                isinstance(there, Adapter)
                and rule.experts == there.experts
                and rule.rank == there.rank
            ):
                rule = replace(rule, experts=self.names)
                self.adapter = make_low_rank(self.experts.values(), rule.rank)
        self._rule = rule

    def _insert(self, name: str, model: LanguageModel) -> None:
        if isinstance(model, nn.Module) and any(module is self for module in model.modules()):
            raise ConfigError(f"expert {name!r} contains the ensemble that it is to join")
        check_model(name, model, self.experts)
        share_substrate(model, self.experts, self.substrate)
        self.experts.insert(name, model)

    def _tokens(self, ids: Tensor) -> Tokens:
        substrate = self.substrate
        if substrate is None:
            return Tokens.of(ids)
        return Tokens.of(ids, substrate.bos_id, substrate.pad_id)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dim() != 2:
            raise ArgumentError(f"Ensemble: ids must be of shape [B, T], got {describe(ids)}")


def _check_rule(rule: object, experts: Sequence[tuple[str, Any]]) -> Rule:
    if not isinstance(rule, Rule):
        raise ConfigError(f"Ensemble: expected a rule such as Mean(), got {rule!r}")
    rule.check([name for name, _ in experts])
    if isinstance(rule, Adapter):
        check_adapted(experts)
    return rule

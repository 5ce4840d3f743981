"""`Ensemble`: several models with one vocabulary, combined into one model."""

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
from fastgrow.compose.offloaded import OffloadedExpert, check_offloadable
from fastgrow.compose.predictions import ensemble_prediction
from fastgrow.compose.rules import Mean, Rule, Tokens
from fastgrow.errors import ArgumentError, ConfigError, describe
from fastgrow.evaluation import BitsPerCharacter, bits_per_character
from fastgrow.nn import FrozenEmbedding, LanguageModel, SubstrateLike
from fastgrow.nn.generate import GenerationMixin
from fastgrow.nn.sampling import Sampler


class Ensemble(GenerationMixin, nn.Module):
    """Experts with the same frozen substrate, merged by a rule; itself a `LanguageModel`.

    There is no router and no training is needed: every expert processes every token, so the cost is
    the sum of the experts' costs (arXiv 2507.07129, modular composition). Experts may differ in
    depth and width, and may be ensembles themselves. Equal token tables are stored once: a new
    expert whose frozen table equals one in the ensemble is made to share its memory.

    Args:
        experts: models by name, at least one; a name may have letters, digits, "_" and "-".
        rule: how predictions are merged; default: `Mean()`.

    Attributes:
        experts: the models by name, in order; change them with `add`, `remove` and `rename`.

    Raises:
        ConfigError: a name is invalid, a model is not a language model or has another vocabulary
            size or device, or the rule does not have exactly one weight per expert.
        SubstrateError: the experts have different substrates; the message names the difference.
    """

    def __init__(self, experts: Mapping[str, LanguageModel], rule: Rule | None = None) -> None:
        super().__init__()
        if not isinstance(experts, Mapping):
            raise ConfigError(
                "Ensemble: expected models by name, such as {'ru': ru, 'zh': zh}, got a "
                f"{type(experts).__name__}"
            )
        if not experts:
            raise ConfigError("Ensemble: expected at least one expert, got none")
        self.experts = Experts()
        for name, model in experts.items():
            self._insert(check_name(name, self.experts), model)
        self.adapter: LowRank | None = None
        self._rule: Rule
        self._set_rule(Mean() if rule is None else rule)

    def forward(
        self, ids: Tensor, cache: EnsembleCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Compute the merged prediction of the next token at each position.

        Args:
            ids: [B, T] int64.
            cache: cache with the earlier tokens (`new_cache`); `ids` are added to it.
            last_only: return the last position only.

        Returns:
            [B, T, V], or [B, 1, V] with `last_only`: logits, or log-probabilities if the rule mixes
            probabilities, in float32 or higher precision.

        Raises:
            ArgumentError: the shape is wrong, an id is out of range, there are more tokens than
                max_seq_len or than the cache can hold, or the experts have changed since the cache
                was made.
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
        """Draw the next token after ids [B, T], without the merged prediction where possible.

        Args:
            ids: [B, T] int64.
            cache: cache with the earlier tokens; `ids` are added to it.
            sampler: how to draw.

        Returns:
            [B] int64.

        Raises:
            ArgumentError: as for `forward`, or a row has no valid distribution.
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
        """Compute the cross-entropy in nats of `targets` [B, T] under the merged prediction.

        Computed without storing the experts' logits if the rule and the experts allow it.

        Args:
            ids: [B, T] int64.
            targets: [B, T] int64.
            ignore_index: targets of this value are ignored.
            reduction: `mean` over the targets that are not ignored, `sum`, or `none` for [B, T].

        Raises:
            ArgumentError: as for `forward`, or a target is out of range.
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
        """Compute bits per character on a text.

        Args:
            data: a token stream, or data with splits such as `fastgrow.TextData`.
            split: the split to use, `train`, `validation` or `test`.
            options: options of `fastgrow.evaluation.bits_per_character`.

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
        """Add an expert.

        Args:
            name: name of the expert, not yet in use.
            model: any `LanguageModel` with the same vocabulary.
            rule: the new rule; required if the current rule has weights by name.

        Raises:
            ConfigError, SubstrateError: as for the constructor; the ensemble is not changed.
        """
        check_name(name, self.experts)
        new_rule = self._rule if rule is None else rule
        try:
            _check_rule(new_rule, [*self.experts.items(), (name, model)])
        except ConfigError as error:
            hint = "" if rule is not None else "; pass add(…, rule=…) with all weights"
            raise ConfigError(f"{error}{hint}") from None
        self._insert(name, model)
        self._set_rule(new_rule)

    def remove(self, name: str, rule: Rule | None = None) -> Any:
        """Remove an expert.

        Args:
            name: name of the expert.
            rule: the new rule; default: the current rule without the weight of the expert.

        Returns:
            The removed model.

        Raises:
            ConfigError: there is no such expert, or it is the only one.
        """
        model = self.experts[name]
        remaining = [expert for expert in self.experts.items() if expert[0] != name]
        if not remaining:
            raise ConfigError(f"expert {name!r} is the last one; an ensemble needs at least one")
        new_rule = _check_rule(self._rule.without(name) if rule is None else rule, remaining)
        self.experts.pop(name)
        self._set_rule(new_rule)
        return model

    def rename(self, old: str, new: str) -> None:
        """Rename an expert; its position and weight stay the same.

        Raises:
            ConfigError: there is no expert `old`, or there already is an expert `new`.
        """
        check_name(new, self.experts)
        self.experts.rename(old, new)
        self._rule = self._rule.renamed(old, new)

    def offload(self, name: str, folder: Path | str | None = None) -> None:
        """Move the weights of an expert to host memory or to disk.

        Each call of the ensemble copies them to the device and releases them afterwards.

        Args:
            name: name of the expert, which has to be a `Decoder`.
            folder: folder to save the weights in; default: host memory.

        Raises:
            ConfigError: there is no such expert, it is not a decoder, or the rule is an `Adapter`,
                which uses hidden states.
            FileExistsError: the folder contains files that do not belong to a saved model.
        """
        model = check_offloadable(name, self.experts[name])
        if self.adapter is not None:
            raise ConfigError(
                "Adapter: it uses the experts' hidden states, so its experts cannot be offloaded; "
                "set another rule first"
            )
        self.experts.replace(name, OffloadedExpert(model, folder))

    def recall(self, name: str) -> None:
        """Move an offloaded expert back to the device.

        Raises:
            ConfigError: there is no such expert, or it is not offloaded.
            CheckpointError: its files are missing or damaged.
        """
        offloaded = self.experts[name]
        if not isinstance(offloaded, OffloadedExpert):
            raise ConfigError(f"expert {name!r} is not offloaded; it is on the device already")
        model = offloaded.recall()
        share_substrate(model, self.experts, self.substrate)
        self.experts.replace(name, model)

    def reweight(self, rule: Rule | Mapping[str, float]) -> None:
        """Set the rule, or the weights of the current rule.

        Args:
            rule: the new rule; or new weights by expert name for the current rule, where `Mean`
                becomes `Weighted`.

        Raises:
            ConfigError: there is not exactly one weight per expert; the rule is not changed.
        """
        if not isinstance(rule, Rule | Mapping):
            raise ConfigError(
                "reweight: expected a rule, such as fg.Posterior(), or weights by expert name, "
                f"such as {{'ru': 0.6, 'zh': 0.4}}, got {rule!r}"
            )
        self._set_rule(rule if isinstance(rule, Rule) else self._rule.with_weights(rule))

    def new_cache(self, batch_size: int, max_len: int | None = None) -> EnsembleCache:
        """Return an empty cache for `batch_size` sequences of `max_len` (max_seq_len) tokens."""
        length = max_len or self.max_seq_len
        caches = {name: m.new_cache(batch_size, length) for name, m in self.experts.items()}
        return EnsembleCache(caches, self._rule, batch_size, length)

    def num_parameters(self, *, active: bool = False, include_table: bool = True) -> int:
        """Count the parameters; a tensor shared by several experts is counted once.

        Args:
            active: count only parameters that require gradients.
            include_table: count the token tables too, frozen or not.
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
        """Names of the experts, in order."""
        return self.experts.names

    @property
    def rule(self) -> Rule:
        """How predictions are merged; `reweight` changes it."""
        return self._rule

    @property
    def substrate(self) -> SubstrateLike | None:
        """Substrate of the experts; None if no expert has one."""
        substrates = (model.substrate for model in self.experts.values())
        return next((substrate for substrate in substrates if substrate is not None), None)

    @property
    def vocab_size(self) -> int:
        """V, the number of token ids."""
        return self.experts.values()[0].vocab_size

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens: the minimum over the experts."""
        return min(model.max_seq_len for model in self.experts.values())

    @property
    def device(self) -> torch.device:
        """Device of the experts, on which ids are expected."""
        return self.experts.values()[0].device

    def extra_repr(self) -> str:
        return f"rule={self._rule}"

    def save(self, path: Path | str, *, with_substrate: bool = True) -> None:
        """Save the ensemble in a folder (format: `fastgrow.compose.files`).

        Args:
            path: the folder.
            with_substrate: whether to save the substrate too. Use False if several models share
                one saved substrate; `load` then requires its argument `substrate`.

        Raises:
            ConfigError: an expert is neither a `Decoder` nor an `Ensemble`.
            FileExistsError: the folder contains files that do not belong to a saved model.
            OSError: the disk is full or not writable; existing files are not changed.
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
        """Load an ensemble from a folder.

        Args:
            path: the folder.
            substrate: substrate to share instead of loading it again; it has to have the same
                fingerprint.
            device: device of the experts; default: the CPU.
            dtype: dtype of the parameters; default: as saved.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit; the message names it.
        """
        from fastgrow.compose.files import load_ensemble

        return load_ensemble(Path(path), substrate=substrate, device=device, dtype=dtype)

    def _set_rule(self, rule: Rule) -> None:
        """Set the rule; for a new `Adapter` this creates the parameters."""
        rule = _check_rule(rule, self.experts.items())
        if not isinstance(rule, Adapter):
            self.adapter = None
        else:
            current = self._rule if self.adapter is not None else None
            if not (
                isinstance(current, Adapter)
                and rule.experts == current.experts
                and rule.rank == current.rank
            ):
                rule = replace(rule, experts=self.names)
                self.adapter = make_low_rank(self.experts.values(), rule.rank)
        self._rule = rule

    def _insert(self, name: str, model: LanguageModel) -> None:
        if isinstance(model, nn.Module) and any(module is self for module in model.modules()):
            raise ConfigError(f"expert {name!r} contains the ensemble that it would be added to")
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

"""Causal language models of Hugging Face's transformers as experts."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor

from fastgrow.compose.callables import CallableExpert
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.interop.hub_vocabulary import HubVocabulary


class HubCache:
    """transformers' cache, with the room that it may take."""

    def __init__(self, keys_and_values: Any, max_len: int) -> None:
        self.keys_and_values = keys_and_values
        self.max_len = max_len

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return int(self.keys_and_values.get_seq_length())

    def repeated(self, times: int) -> HubCache:
        """A copy with each sequence `times` times."""
        keys_and_values = copy.copy(self.keys_and_values)
        # Repeating gives a layer new tensors, so that the original keeps its own.
        keys_and_values.layers = [copy.copy(layer) for layer in self.keys_and_values.layers]
        keys_and_values.batch_repeat_interleave(times)
        return HubCache(keys_and_values, self.max_len)


class HubExpert(CallableExpert):
    """A causal language model of transformers, such as `GPT2LMHeadModel`, as a `LanguageModel`.

    It reads on from transformers' own cache of keys and values.

    Args:
        model: the model, as `AutoModelForCausalLM` gives it.
        tokenizer: its tokenizer, so that text can be read and written, and experts whose
            vocabularies differ are refused with what differs; without it V alone is compared.

    Raises:
        ConfigError: the model has no head over a vocabulary, or doesn't say how long its context
            is.
    """

    def __init__(self, model: Any, tokenizer: Any | None = None) -> None:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise ConfigError(
                f"HubExpert: {type(model).__name__} has no head over a vocabulary; "
                "expected a causal language model of transformers"
            )
        context = getattr(model.config, "max_position_embeddings", None)
        if not isinstance(context, int):
            raise ConfigError(
                f"HubExpert: the configuration of {type(model).__name__} has no "
                "max_position_embeddings, the longest context"
            )
        size = head.weight.shape[0]
        vocabulary = None if tokenizer is None else HubVocabulary(tokenizer, size)
        super().__init__(model, vocab_size=size, max_seq_len=context, vocabulary=vocabulary)
        self._cuts = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        """Logits [B, T, V], or [B, 1, V] for `last_only`, after each of ids [B, T].

        Raises:
            ArgumentError: more tokens than max_seq_len or than the cache holds.
        """
        before, room = (0, self.max_seq_len) if cache is None else (cache.length, cache.max_len)
        if before + ids.shape[1] > min(room, self.max_seq_len):
            raise ArgumentError(
                f"HubExpert: reads at most {min(room, self.max_seq_len)} tokens, "
                f"got {ids.shape[1]} after {before}"
            )
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache.keys_and_values
        if last_only and self._cuts:
            options["logits_to_keep"] = 1
        logits: Tensor = self.call(ids, **options).logits
        return logits[:, -1:] if last_only else logits

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
        """An empty cache for `batch_size` sequences of at most `max_len` (max_seq_len) tokens."""
        from transformers import DynamicCache

        model: Any = self.call
        return HubCache(DynamicCache(config=model.config), max_len or self.max_seq_len)

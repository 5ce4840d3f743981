"""`HubExpert`: a causal language model of Hugging Face transformers as an expert."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor

from fastgrow.compose.callables import CallableExpert
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.interop.hub_vocabulary import HubVocabulary


class HubCache:
    """A cache of transformers with a maximum length."""

    def __init__(self, keys_and_values: Any, max_len: int) -> None:
        self.keys_and_values = keys_and_values
        self.max_len = max_len

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return int(self.keys_and_values.get_seq_length())

    def repeated(self, times: int) -> HubCache:
        """Return a copy in which each sequence is repeated `times` times."""
        keys_and_values = copy.copy(self.keys_and_values)
        # batch_repeat_interleave assigns new tensors to a layer, so the layers are copied first.
        keys_and_values.layers = [copy.copy(layer) for layer in self.keys_and_values.layers]
        keys_and_values.batch_repeat_interleave(times)
        return HubCache(keys_and_values, self.max_len)


class HubExpert(CallableExpert):
    """Wraps a causal language model of transformers, such as `GPT2LMHeadModel`, as an expert.

    Generation uses transformers' cache of keys and values.

    Args:
        model: the model, e.g. from `AutoModelForCausalLM`.
        tokenizer: its tokenizer. It is required for text input and output, and lets an ensemble
            compare vocabularies token by token; without it only V is compared.

    Raises:
        ConfigError: the model has no head over a vocabulary, or its configuration has no
            max_position_embeddings.
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
        self._has_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits [B, T, V] for ids [B, T], or [B, 1, V] with `last_only`.

        Raises:
            ArgumentError: there are more tokens than max_seq_len or than the cache can hold.
        """
        before, limit = (0, self.max_seq_len) if cache is None else (cache.length, cache.max_len)
        if before + ids.shape[1] > min(limit, self.max_seq_len):
            raise ArgumentError(
                f"HubExpert: accepts at most {min(limit, self.max_seq_len)} tokens, "
                f"got {ids.shape[1]} after {before}"
            )
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache.keys_and_values
        if last_only and self._has_logits_to_keep:
            options["logits_to_keep"] = 1
        logits: Tensor = self.call(ids, **options).logits
        return logits[:, -1:] if last_only else logits

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
        """Return an empty cache for `batch_size` sequences of `max_len` (max_seq_len) tokens."""
        from transformers import DynamicCache

        model: Any = self.call
        return HubCache(DynamicCache(config=model.config), max_len or self.max_seq_len)

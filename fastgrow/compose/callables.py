"""Anything that gives logits as an expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ArgumentError, ConfigError, describe
from fastgrow.nn import SubstrateLike
from fastgrow.nn.generate import GenerationMixin


class ReadTokens:
    """The cache of a function that has none: the tokens themselves, to be read again."""

    def __init__(self, batch_size: int, max_len: int) -> None:
        self.batch_size = batch_size
        self.max_len = max_len
        self.ids: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return 0 if self.ids is None else self.ids.shape[1]

    def append(self, ids: Tensor) -> Tensor:
        """All tokens, with these at the end.

        Raises:
            ArgumentError: they don't fit.
        """
        if self.length + ids.shape[1] > self.max_len:
            raise ArgumentError(
                f"cache: holds at most {self.max_len} tokens, "
                f"got {ids.shape[1]} after {self.length}"
            )
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        return self.ids

    def repeated(self, times: int) -> ReadTokens:
        """A copy with each sequence `times` times."""
        copy = ReadTokens(self.batch_size * times, self.max_len)
        copy.ids = None if self.ids is None else self.ids.repeat_interleave(times, dim=0)
        return copy


class CallableExpert(GenerationMixin, nn.Module):
    """A function from ids to logits as a `LanguageModel`, which an `Ensemble` takes as an expert.

    A module among the functions trains and moves with the expert. When text is generated, each
    token reads all tokens before it again, because a bare function has no cache.

    Args:
        call: ids [B, T] int64 to logits [B, T, V], or to an object that has them as `.logits`.
        vocab_size: V.
        max_seq_len: longest context in tokens.
        vocabulary: what the ids mean; experts whose vocabularies differ are refused. None where
            that is not known: then V alone is compared.
        device: where ids are expected; that of the function's first parameter, where it is a
            module, or the CPU.

    Raises:
        ConfigError: a size is below 1, or the vocabulary has more entries than V.
    """

    def __init__(
        self,
        call: Callable[[Tensor], Any],
        *,
        vocab_size: int,
        max_seq_len: int,
        vocabulary: SubstrateLike | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("max_seq_len", max_seq_len)):
            if value < 1:
                raise ConfigError(f"CallableExpert: {name} must be at least 1, got {value}")
        if vocabulary is not None and len(vocabulary) > vocab_size:
            raise ConfigError(
                f"CallableExpert: vocab_size is {vocab_size:,}, but the vocabulary has "
                f"{len(vocabulary):,} entries"
            )
        self.call = call
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.substrate = vocabulary
        self._device = None if device is None else _with_number(torch.device(device))

    @property
    def beyond_state(self) -> tuple[str, ...]:
        """What its answers depend on and its state dict lacks (`fastgrow.evaluation.identity`)."""
        return () if isinstance(self.call, nn.Module) else ("an expert's bare function",)

    @property
    def device(self) -> torch.device:
        """Where ids are expected."""
        if self._device is not None:
            return self._device
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(
        self, ids: Tensor, cache: ReadTokens | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits [B, T, V], or [B, 1, V] for `last_only`, after each of ids [B, T].

        Raises:
            ArgumentError: more tokens than max_seq_len or than the cache holds, or the function
                gives another shape.
        """
        new = ids.shape[1]
        if cache is not None:
            ids = cache.append(ids)
        if ids.shape[1] > self.max_seq_len:
            raise ArgumentError(
                f"CallableExpert: reads at most {self.max_seq_len} tokens, got {ids.shape[1]}"
            )
        output = self.call(ids)
        logits = getattr(output, "logits", output)
        expected = (*ids.shape, self.vocab_size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            got = describe(logits) if isinstance(logits, Tensor) else type(logits).__name__
            raise ArgumentError(
                f"CallableExpert: the function must give logits of shape {list(expected)}, "
                f"got {got}"
            )
        return logits[:, -1:] if last_only else logits[:, -new:]

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T]; see `LanguageModel.loss`."""
        return ops.mean_cross_entropy(
            [self(ids)], targets, ignore_index=ignore_index, reduction=reduction
        )

    def new_cache(self, batch_size: int, max_len: int | None = None) -> ReadTokens:
        """An empty cache for `batch_size` sequences of at most `max_len` (max_seq_len) tokens."""
        return ReadTokens(batch_size, max_len or self.max_seq_len)


def _with_number(device: torch.device) -> torch.device:
    """`cuda` is the current GPU; the tensors of other experts tell theirs with its number."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device

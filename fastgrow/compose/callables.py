"""`CallableExpert`: any function that returns logits, as an expert."""

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
    """Cache for a function without a cache: stores the tokens, which are processed again."""

    def __init__(self, batch_size: int, max_len: int) -> None:
        self.batch_size = batch_size
        self.max_len = max_len
        self.ids: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return 0 if self.ids is None else self.ids.shape[1]

    def append(self, ids: Tensor) -> Tensor:
        """Append ids and return all tokens.

        Raises:
            ArgumentError: they do not fit.
        """
        if self.length + ids.shape[1] > self.max_len:
            raise ArgumentError(
                f"cache: holds at most {self.max_len} tokens, "
                f"got {ids.shape[1]} after {self.length}"
            )
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        return self.ids

    def repeated(self, times: int) -> ReadTokens:
        """Return a copy in which each sequence is repeated `times` times."""
        copy = ReadTokens(self.batch_size * times, self.max_len)
        copy.ids = None if self.ids is None else self.ids.repeat_interleave(times, dim=0)
        return copy


class CallableExpert(GenerationMixin, nn.Module):
    """Wraps a function from ids to logits as a `LanguageModel` that can be an expert.

    If `call` is a module, it is a submodule of the expert: it is trained and moved with it. During
    generation each new token processes all tokens before it again, because a function has no cache.

    Args:
        call: function from ids [B, T] int64 to logits [B, T, V], or to an object with an attribute
            `logits`.
        vocab_size: V, the number of token ids.
        max_seq_len: longest context in tokens.
        vocabulary: the vocabulary of the ids; an ensemble rejects experts whose vocabularies
            differ. If None, only V is compared.
        device: device of the ids; by default the device of the first parameter if `call` is a
            module, else the CPU.

    Raises:
        ConfigError: a size is below 1, or the vocabulary has more than V entries.
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
        self._device = None if device is None else _with_index(torch.device(device))

    @property
    def not_in_state_dict(self) -> tuple[str, ...]:
        """What affects the output but is not in the state dict; see `evaluation.identity`."""
        return () if isinstance(self.call, nn.Module) else ("the function of a CallableExpert",)

    @property
    def device(self) -> torch.device:
        """Device on which ids are expected."""
        if self._device is not None:
            return self._device
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(
        self, ids: Tensor, cache: ReadTokens | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Return logits [B, T, V] for ids [B, T], or [B, 1, V] with `last_only`.

        Raises:
            ArgumentError: there are more tokens than max_seq_len or than the cache can hold, or
                the function returns another shape.
        """
        new = ids.shape[1]
        if cache is not None:
            ids = cache.append(ids)
        if ids.shape[1] > self.max_seq_len:
            raise ArgumentError(
                f"CallableExpert: accepts at most {self.max_seq_len} tokens, got {ids.shape[1]}"
            )
        output = self.call(ids)
        logits = getattr(output, "logits", output)
        expected = (*ids.shape, self.vocab_size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            got = describe(logits) if isinstance(logits, Tensor) else type(logits).__name__
            raise ArgumentError(
                f"CallableExpert: the function must return logits of shape {list(expected)}, "
                f"got {got}"
            )
        return logits[:, -1:] if last_only else logits[:, -new:]

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Compute the cross-entropy in nats of `targets` [B, T]; see `LanguageModel.loss`."""
        return ops.mean_cross_entropy(
            [self(ids)], targets, ignore_index=ignore_index, reduction=reduction
        )

    def new_cache(self, batch_size: int, max_len: int | None = None) -> ReadTokens:
        """Return an empty cache for `batch_size` sequences of `max_len` (max_seq_len) tokens."""
        return ReadTokens(batch_size, max_len or self.max_seq_len)


def _with_index(device: torch.device) -> torch.device:
    """Replace `cuda` by the current GPU with its index, which `Tensor.device` also contains."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device

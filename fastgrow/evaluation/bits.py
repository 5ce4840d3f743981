"""Bits per character: a loss that is comparable between vocabularies.

A token stream is a sequence of documents, each `<s> tokens … </s>`. The targets are all tokens
except `<s>` and padding, i.e. the tokens of the text and `</s>`. With L the sum of -ln p over the
targets and C the number of characters in them,

    bits per character = L / (ln 2 * C).

This equals bits per token times tokens per character. With a vocabulary of longer tokens the loss
per token of the same text is higher; dividing by characters instead of tokens removes this effect.
`</s>` and `<unk>` are targets and have no characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fastgrow.errors import ConfigError, DataError
from fastgrow.evaluation.mode import evaluation_mode

_IGNORE_INDEX = -100
# Tokens are counted in blocks of this size, so that a memory-mapped stream is not loaded whole.
_BLOCK = 1 << 20


class EncodedText(Protocol):
    """A token stream: `ids` is a 1-D integer array, `substrate` the substrate of the ids."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def substrate(self) -> Any: ...


class HasLoss(Protocol):
    """A model, an ensemble, or any other object with a method `loss`."""

    def loss(
        self, ids: torch.Tensor, targets: torch.Tensor, *, ignore_index: int, reduction: str
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class BitsPerCharacter:
    """A loss in several units.

    Attributes:
        bits_per_character: bits per character of text.
        bits_per_token: bits per target.
        loss: nats per target.
        tokens: number of targets, including `</s>`.
        characters: number of characters in the targets.
    """

    bits_per_character: float
    bits_per_token: float
    loss: float
    tokens: int
    characters: int

    @classmethod
    def from_nats(cls, nats: float, tokens: int, characters: int) -> BitsPerCharacter:
        """Compute the units from the sum of -ln p over all targets."""
        bits = nats / math.log(2)
        return cls(bits / characters, bits / tokens, nats / tokens, tokens, characters)

    @classmethod
    def over_all(cls, parts: Iterable[BitsPerCharacter]) -> BitsPerCharacter:
        """Combine the losses of several texts into the loss of all of them together."""
        parts = list(parts)
        return cls.from_nats(
            math.fsum(part.loss * part.tokens for part in parts),
            sum(part.tokens for part in parts),
            sum(part.characters for part in parts),
        )


def bits_per_character(
    model: HasLoss,
    stream: EncodedText,
    *,
    batch_size: int = 16,
    seq_len: int | None = None,
    max_tokens: int | None = None,
) -> BitsPerCharacter:
    """Compute bits per character of a token stream; each target is scored exactly once.

    The stream is split into non-overlapping windows of seq_len targets, which are scored
    independently; the last window may be shorter. Modules are in evaluation mode during the call,
    and no gradient is computed.

    Args:
        model: an object with `loss(ids, targets, ignore_index=…, reduction="sum")`, where ids and
            targets are int64 [B, T] on the model's device.
        stream: ids and their substrate.
        batch_size: windows per batch.
        seq_len: targets per window; None for the model's `max_seq_len`.
        max_tokens: maximum number of positions to score, from the start of the stream.

    Raises:
        ConfigError: a size is not positive, or seq_len is None and the model has no max_seq_len.
        DataError: the stream has no target or no character.
    """
    if seq_len is None:
        seq_len = getattr(model, "max_seq_len", None)
        if seq_len is None:
            raise ConfigError("the model has no max_seq_len: pass seq_len")
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    positions = _positions(stream, max_tokens)
    device = _device(model)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad(), evaluation_mode(model):
        for ids, targets in _windows(stream, positions, batch_size, seq_len):
            summed = model.loss(
                torch.from_numpy(ids).to(device),
                torch.from_numpy(targets).to(device),
                ignore_index=_IGNORE_INDEX,
                reduction="sum",
            )
            nats += summed.double()
    tokens, characters = _count_targets(stream, positions)
    return BitsPerCharacter.from_nats(nats.item(), tokens, characters)


def uniform_bits(test_stream: EncodedText, *, max_tokens: int | None = None) -> BitsPerCharacter:
    """Compute the loss of the uniform distribution over the vocabulary."""
    tokens, characters = _count_targets(test_stream, _positions(test_stream, max_tokens))
    vocab_size = len(test_stream.substrate)
    return BitsPerCharacter.from_nats(tokens * math.log(vocab_size), tokens, characters)


def unigram_bits(
    train_stream: EncodedText, test_stream: EncodedText, *, max_tokens: int | None = None
) -> BitsPerCharacter:
    """Compute the loss of a unigram model with add-one smoothing, fitted on the training stream.

    p(v) = (count(v) + 1) / (N + V), with N the number of targets in the training stream and V the
    size of the vocabulary.

    Raises:
        DataError: the streams belong to different substrates, or a stream is empty.
    """
    train, test = train_stream.substrate, test_stream.substrate
    if train.fingerprint != test.fingerprint:
        raise DataError(
            "the streams were encoded with different substrates: "
            f"{train.fingerprint[:12]} and {test.fingerprint[:12]}"
        )
    vocab_size = len(test)
    counts = _target_counts(train_stream, _positions(train_stream, None), vocab_size)
    log_p = np.log(counts + 1.0) - math.log(counts.sum() + vocab_size)
    positions = _positions(test_stream, max_tokens)
    seen = _target_counts(test_stream, positions, vocab_size)
    tokens, characters = _count_targets(test_stream, positions)
    return BitsPerCharacter.from_nats(-float(seen @ log_p), tokens, characters)


def _positions(stream: EncodedText, max_tokens: int | None) -> int:
    """Return the number of positions whose next token may be a target."""
    positions = max(len(stream.ids) - 1, 0)
    if max_tokens is None:
        return positions
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, got {max_tokens}")
    return min(positions, max_tokens)


def _windows(
    stream: EncodedText, positions: int, batch_size: int, seq_len: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids, targets), int64 [B, seq_len]; at the end the remaining targets as [1, n]."""
    full = positions // seq_len
    for first in range(0, full, batch_size):
        windows = min(batch_size, full - first)
        start, stop = first * seq_len, (first + windows) * seq_len
        yield _window_rows(stream, start, stop, windows)
    if positions % seq_len:
        yield _window_rows(stream, full * seq_len, positions, 1)


def _window_rows(
    stream: EncodedText, start: int, stop: int, windows: int
) -> tuple[np.ndarray, np.ndarray]:
    ids = stream.ids[start:stop].astype(np.int64).reshape(windows, -1)
    targets = stream.ids[start + 1 : stop + 1].astype(np.int64)
    targets[~_predicted(stream, targets)] = _IGNORE_INDEX
    return ids, targets.reshape(windows, -1)


def _predicted(stream: EncodedText, targets: np.ndarray) -> np.ndarray:
    return (targets != stream.substrate.bos_id) & (targets != stream.substrate.pad_id)


def _target_counts(stream: EncodedText, positions: int, vocab_size: int) -> np.ndarray:
    """Count how often each token is a target, int64 [V]."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(1, positions + 1, _BLOCK):
        targets = np.asarray(stream.ids[start : min(start + _BLOCK, positions + 1)])
        counts += np.bincount(targets[_predicted(stream, targets)], minlength=vocab_size)
    return counts


def _count_targets(stream: EncodedText, positions: int) -> tuple[int, int]:
    """Count the targets and their characters."""
    counts = _target_counts(stream, positions, len(stream.substrate))
    tokens = int(counts.sum())
    characters = int(counts @ stream.substrate.n_characters.astype(np.int64))
    if not characters:
        name = getattr(stream, "name", "stream")
        raise DataError(f"{name}: holds no text to evaluate ({positions + 1} tokens)")
    return tokens, characters


def _device(model: HasLoss) -> torch.device:
    """Return the device of the model's inputs.

    An ensemble whose experts are all offloaded has no tensor on it, but an attribute `device`.
    """
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")

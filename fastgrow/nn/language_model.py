"""What the rest of fastgrow relies on in a model.

Training, evaluation, generation and ensembles ask for no more than this, so an ensemble of models
is a model as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class SubstrateLike(Protocol):
    """What models and training ask of a `fastgrow.Substrate`: text to ids, ids to vectors."""

    @property
    def n_embed(self) -> int:
        """Width of the table."""

    @property
    def table(self) -> np.ndarray[Any, Any]:
        """[V, n_embed] float32, the same array at every call."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of everything the table is made from."""

    @property
    def pad_id(self) -> int:
        """Id that fills up rows."""

    @property
    def bos_id(self) -> int:
        """Id that begins a document."""

    @property
    def eos_id(self) -> int:
        """Id that ends a document."""

    @property
    def n_characters(self) -> np.ndarray[Any, Any]:
        """Characters that each token stands for, int32 [V]."""

    def __len__(self) -> int:
        """V, number of token ids."""

    def encode(self, text: str) -> list[int]:
        """Text to ids."""

    def encode_batch(self, texts: list[str], *, unknown: Any = "error") -> list[list[int]]:
        """Texts to ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, special tokens left out."""

    def save(self, path: Path) -> object:
        """Write the substrate's files into a folder."""


@runtime_checkable
class Cache(Protocol):
    """Keys and values of the tokens a model has read; made by `LanguageModel.new_cache`."""

    @property
    def length(self) -> int:
        """Tokens read so far."""

    @property
    def max_len(self) -> int:
        """Tokens that fit."""


@runtime_checkable
class LanguageModel(Protocol):
    """A causal model of token sequences."""

    @property
    def substrate(self) -> SubstrateLike | None:
        """Text to ids and back; None for a model of bare ids."""

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens."""

    @property
    def device(self) -> torch.device:
        """Where ids are expected."""

    def __call__(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        """Logits of the next token after each token.

        Args:
            ids: [B, T] int64.
            cache: what `new_cache` returned: the ids continue what it has seen and are added.
            last_only: give the last position's logits alone.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`.
        """

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T], the token that follows each of `ids` [B, T].

        Args:
            ids: [B, T] int64.
            targets: [B, T] int64.
            ignore_index: targets of this value count nothing.
            reduction: `mean` over the targets that count, `sum`, or `none` for [B, T].
        """

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Cache:
        """An empty cache for `batch_size` sequences of at most `max_len` (max_seq_len) tokens."""

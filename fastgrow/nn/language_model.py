"""Protocols of models, caches and substrates.

Training, evaluation, generation and ensembles use only these methods of a model, so that they work
with any model, for example an ensemble of models.
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
    """The part of `fastgrow.Substrate` that models and training use."""

    @property
    def n_embed(self) -> int:
        """Width of the table."""

    @property
    def table(self) -> np.ndarray[Any, Any]:
        """The token table [V, n_embed] float32, the same array at every call."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of all data that the table is made from."""

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""

    @property
    def bos_id(self) -> int:
        """Id of the token that starts a document."""

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a document."""

    @property
    def n_characters(self) -> np.ndarray[Any, Any]:
        """Number of characters of each token, int32 [V]."""

    def __len__(self) -> int:
        """V, number of token ids."""

    def encode(self, text: str) -> list[int]:
        """Convert a text to ids."""

    def encode_batch(self, texts: list[str], *, unknown: Any = "error") -> list[list[int]]:
        """Convert texts to ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text, without special tokens."""

    def save(self, path: Path) -> object:
        """Save the substrate's files in a folder."""


@runtime_checkable
class Cache(Protocol):
    """Keys and values of earlier tokens; made by `LanguageModel.new_cache`."""

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""

    @property
    def max_len(self) -> int:
        """Maximum number of tokens."""


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model."""

    @property
    def substrate(self) -> SubstrateLike | None:
        """Converts text to ids and back; None for a model that works with ids only."""

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""

    @property
    def max_seq_len(self) -> int:
        """Maximum context length in tokens."""

    @property
    def device(self) -> torch.device:
        """Device that ids must be on."""

    def __call__(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        """Return the logits of the next token after each token.

        Args:
            ids: token ids [B, T] int64.
            cache: cache of the earlier tokens (`new_cache`), which `ids` continue and are added to.
            last_only: whether to return only the logits of the last position.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`.
        """

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross-entropy of the next tokens `targets` given `ids`, in nats.

        Args:
            ids: token ids [B, T] int64.
            targets: [B, T] int64, the token that follows each of `ids`.
            ignore_index: targets of this value do not contribute to the loss.
            reduction: `mean` over the targets that are not ignored, `sum`, or `none` for [B, T].
        """

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Cache:
        """Return an empty cache for `batch_size` sequences of at most `max_len` tokens.

        `max_len` is max_seq_len by default.
        """

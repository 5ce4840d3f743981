"""The vocabulary of a tokenizer of transformers, with what models ask of a substrate."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastgrow.errors import ArgumentError, ConfigError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class HubVocabulary:
    """A tokenizer of transformers as a `SubstrateLike` without vectors.

    Args:
        tokenizer: as `AutoTokenizer` gives it.
        size: V, at least the tokenizer's number of entries; heads are often padded to a round
            number. The tokenizer's own number without.

    Raises:
        ConfigError: the tokenizer has ids beyond `size`, or no token that ends a text.
    """

    def __init__(self, tokenizer: Any, size: int | None = None) -> None:
        self.tokenizer = tokenizer
        ids: dict[str, int] = tokenizer.get_vocab()
        largest = max(ids.values())
        self._size = largest + 1 if size is None else size
        if largest >= self._size:
            raise ConfigError(
                f"the tokenizer has the id {largest:,}, but the model's head has "
                f"{self._size:,} entries"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no token that ends a text (eos_token)")
        self.tokens: list[str | None] = [None] * self._size
        for token, place in ids.items():
            self.tokens[place] = token
        # What tokenizers lack, their end of text stands in for: GPT-2 has nothing else.
        self.eos_id = int(tokenizer.eos_token_id)
        self.bos_id = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.fingerprint = hashlib.sha256(
            json.dumps([self.tokens, self.bos_id, self.eos_id]).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return self._size

    @property
    def n_embed(self) -> int:
        """There are no vectors."""
        return 0

    @property
    def table(self) -> np.ndarray[Any, Any]:
        """There are no vectors, [V, 0]."""
        return np.zeros((self._size, 0), np.float32)

    @property
    def n_characters(self) -> np.ndarray[Any, Any]:
        """Characters that begin in each token, int32 [V]; special tokens have none.

        A token of a byte-level vocabulary may end within a character: counting the first byte of
        each makes the sum over a text exact.
        """
        special = set(self.tokenizer.all_special_ids)
        byte_level = self._is_byte_level()
        return np.array(
            [
                0 if token is None or place in special else _characters(token, byte_level)
                for place, token in enumerate(self.tokens)
            ],
            np.int32,
        )

    def encode(self, text: str) -> list[int]:
        """Text to ids, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_batch(self, texts: list[str], *, unknown: Any = "error") -> list[list[int]]:
        """Texts to ids, without special tokens; the tokenizer decides about unknown text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def difference(self, other: HubVocabulary) -> str:
        """What differs between two vocabularies, "" if nothing does."""
        if len(self) != len(other):
            return f"{len(self):,} entries against {len(other):,}"
        for place, (mine, theirs) in enumerate(zip(self.tokens, other.tokens, strict=True)):
            if mine != theirs:
                return f"id {place} is {mine!r} against {theirs!r}"
        for name in ("bos_id", "eos_id"):
            mine_id, their_id = getattr(self, name), getattr(other, name)
            if mine_id != their_id:
                return f"{name} is {mine_id} against {their_id}"
        return ""

    def save(self, path: Path) -> object:
        """Not here: such models are saved by transformers.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(f"{path}: save a tokenizer of transformers with its save_pretrained")

    def _is_byte_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)


def _characters(token: str, byte_level: bool) -> int:
    """How many characters begin in a token."""
    byte = _BYTE.fullmatch(token)
    if byte:
        return int(_begins(int(byte[1], 16)))
    if byte_level:
        return sum(_begins(_BYTE_OF.get(letter, ord("?"))) for letter in token)
    return len(token)


def _begins(byte: int) -> bool:
    """Whether a character in UTF-8 begins with this byte."""
    return byte & 0xC0 != 0x80


def _bytes_of_letters() -> dict[str, int]:
    """Byte-level vocabularies write a byte that is no visible Latin-1 letter as one from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _bytes_of_letters()

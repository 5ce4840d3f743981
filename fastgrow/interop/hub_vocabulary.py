"""`HubVocabulary`: a tokenizer of transformers with the interface of a substrate."""

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
    """Wraps a tokenizer of transformers as a `SubstrateLike` without token vectors.

    Args:
        tokenizer: the tokenizer, e.g. from `AutoTokenizer`.
        size: V, at least the tokenizer's number of entries; heads are often padded to a round
            number. Default: the tokenizer's number of entries.

    Raises:
        ConfigError: the tokenizer has an id of `size` or more, or no eos_token.
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
            raise ConfigError("the tokenizer has no token for the end of a text (eos_token)")
        self.tokens: list[str | None] = [None] * self._size
        for token, index in ids.items():
            self.tokens[index] = token
        # GPT-2 has no other special token: eos_id replaces missing ids.
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
        """0, since there are no token vectors."""
        return 0

    @property
    def table(self) -> np.ndarray[Any, Any]:
        """Empty array [V, 0], since there are no token vectors."""
        return np.zeros((self._size, 0), np.float32)

    @property
    def n_characters(self) -> np.ndarray[Any, Any]:
        """Number of characters that start in each token, int32 [V]; 0 for special tokens.

        A token of a byte-level vocabulary may end inside a character. Counting the first byte of
        each character makes the sum over a text exact.
        """
        special = set(self.tokenizer.all_special_ids)
        byte_level = self._is_byte_level()
        return np.array(
            [
                0 if token is None or index in special else _characters(token, byte_level)
                for index, token in enumerate(self.tokens)
            ],
            np.int32,
        )

    def encode(self, text: str) -> list[int]:
        """Encode a text, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_batch(self, texts: list[str], *, unknown: Any = "error") -> list[list[int]]:
        """Encode texts without special tokens; `unknown` is ignored, the tokenizer decides."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def difference(self, other: HubVocabulary) -> str:
        """Describe the first difference between two vocabularies; "" if they are equal."""
        if len(self) != len(other):
            return f"{len(self):,} entries against {len(other):,}"
        for index, (token, other_token) in enumerate(zip(self.tokens, other.tokens, strict=True)):
            if token != other_token:
                return f"id {index} is {token!r} against {other_token!r}"
        for name in ("bos_id", "eos_id"):
            token_id, other_id = getattr(self, name), getattr(other, name)
            if token_id != other_id:
                return f"{name} is {token_id} against {other_id}"
        return ""

    def save(self, path: Path) -> object:
        """Not supported: use the tokenizer's `save_pretrained`.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            f"{path}: a HubVocabulary cannot be saved; use the tokenizer's save_pretrained"
        )

    def _is_byte_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)


def _characters(token: str, byte_level: bool) -> int:
    """Count the characters that start in a token."""
    byte = _BYTE.fullmatch(token)
    if byte:
        return int(_begins(int(byte[1], 16)))
    if byte_level:
        return sum(_begins(_BYTE_OF.get(letter, ord("?"))) for letter in token)
    return len(token)


def _begins(byte: int) -> bool:
    """Whether this byte is the first byte of a character in UTF-8."""
    return byte & 0xC0 != 0x80


def _bytes_of_letters() -> dict[str, int]:
    """Map the letters of byte-level vocabularies to bytes.

    These write a byte that is not a visible Latin-1 character as a letter from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _bytes_of_letters()

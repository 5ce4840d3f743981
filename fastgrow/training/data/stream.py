"""Token streams: the concatenated token ids of a corpus split, for training and evaluation.

Each document is encoded as `<s> tokens … </s>`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np

from fastgrow.errors import ConfigError, DataError
from fastgrow.nn import SubstrateLike


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the narrowest dtype for ids: uint16 for up to 65,536 tokens, otherwise uint32."""
    return np.dtype(np.uint16 if vocab_size <= 65_536 else np.uint32)


class TokenStream:
    """Token ids of one split.

    Attributes:
        ids: uint16 or uint32, shape [tokens], an array or a read-only memory map.
        substrate: the substrate the ids belong to.
        n_documents: number of documents in the stream.
        n_characters: number of characters of all documents, without special tokens.
        name: name of the stream in error messages ("train", …).
        digest: SHA-256 of the ids. It is computed on first use if not given.
    """

    def __init__(
        self,
        ids: np.ndarray,
        substrate: SubstrateLike,
        *,
        n_documents: int,
        n_characters: int,
        name: str = "stream",
        digest: str | None = None,
    ) -> None:
        self.ids = ids
        self.substrate = substrate
        self.n_documents = n_documents
        self.n_characters = n_characters
        self.name = name
        self._digest = digest

    @property
    def digest(self) -> str:
        """SHA-256 of the ids as little-endian integers, independent of the files they came from."""
        if self._digest is None:
            little_endian = self.ids.astype(self.ids.dtype.newbyteorder("<"), copy=False)
            self._digest = hashlib.sha256(little_endian.tobytes()).hexdigest()
        return self._digest

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"TokenStream({self.name!r}, documents={self.n_documents:,}, "
            f"characters={self.n_characters:,}, tokens={len(self):,})"
        )

    @property
    def tokens_per_character(self) -> float:
        """Predicted tokens (all except `<s>`) per character of text."""
        return (len(self) - self.n_documents) / max(self.n_characters, 1)


class MixedStream:
    """Several streams with weights.

    Training draws windows from `parts` in proportion to the weights. Evaluation reads `ids`: whole
    documents from the beginning of each part, with numbers of tokens in proportion to the weights.

    Attributes:
        parts: (stream, weight) pairs; the weights add up to 1.
    """

    def __init__(
        self, parts: Sequence[tuple[TokenStream | MixedStream, float]], *, name: str = "mixture"
    ) -> None:
        flat: list[tuple[TokenStream, float]] = []
        for stream, weight in parts:
            if not 0 < weight < float("inf"):
                raise ConfigError(f"{name}: a weight must be positive and finite, got {weight}")
            if isinstance(stream, MixedStream):
                flat += [(part, weight * share) for part, share in stream.parts]
            else:
                flat.append((stream, weight))
        if not flat:
            raise ConfigError(f"{name}: a mixture must have at least one part")
        first = flat[0][0].substrate
        for index, (stream, _) in enumerate(flat):
            if stream.substrate.fingerprint != first.fingerprint:
                raise DataError(
                    f"{name}: part {index} was encoded with a different substrate than part 0 "
                    f"(fingerprint {stream.substrate.fingerprint[:12]}…, expected "
                    f"{first.fingerprint[:12]}…)"
                )
        # Weights are part of a run's identity, and `sum` rounds differently since Python 3.12.
        total = math.fsum(weight for _, weight in flat)
        self.parts: list[tuple[TokenStream, float]] = [
            (stream, weight / total) for stream, weight in flat
        ]
        self.substrate = first
        self.name = name
        self._ids: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the parts' digests and weights."""
        parts = [[stream.digest, weight] for stream, weight in self.parts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def ids(self) -> np.ndarray:
        """Token ids in proportion to the weights, shape [tokens].

        Raises:
            DataError: some parts are empty and others are not.
        """
        if self._ids is None:
            empty = [index for index, (stream, _) in enumerate(self.parts) if not len(stream)]
            if empty and len(empty) < len(self.parts):
                raise DataError(
                    f"{self.name}: part {empty[0]} of the mixture is empty, expected a share of "
                    f"{self.parts[empty[0]][1]:.2f} of the tokens"
                )
            length = min(len(stream) / weight for stream, weight in self.parts)
            pieces = [_whole_documents(stream, round(length * w)) for stream, w in self.parts]
            self._ids = np.concatenate(pieces)
        return self._ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        """Number of documents in `ids`."""
        return int((self.ids == self.substrate.eos_id).sum())

    @property
    def n_characters(self) -> int:
        """Number of characters in `ids`."""
        return int(self.substrate.n_characters[self.ids].sum())

    @property
    def tokens_per_character(self) -> float:
        """Predicted tokens per character, averaged over windows drawn by weight."""
        characters = math.fsum(
            weight / stream.tokens_per_character for stream, weight in self.parts if len(stream)
        )
        return 1.0 / max(characters, 1e-12)


def _whole_documents(stream: TokenStream, tokens: int) -> np.ndarray:
    """Return the longest prefix of whole documents within `tokens`; at least one document."""
    ends = np.flatnonzero(stream.ids == stream.substrate.eos_id) + 1
    if len(ends) == 0:
        return stream.ids[:0]
    count = int(np.searchsorted(ends, tokens, side="right"))
    return stream.ids[: ends[max(count, 1) - 1]]

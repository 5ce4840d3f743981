"""Documents to token ids, sorted into splits."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fastgrow.errors import DataError, FastgrowError, SubstrateError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.documents import Document
from fastgrow.training.data.stream import token_dtype

SPLITS = ("train", "validation", "test")
# Characters that are encoded in one call: enough to keep every core busy, little to hold.
_BATCH_CHARACTERS = 1 << 20


class EncodedDocument(NamedTuple):
    """One document of a split: `<s> tokens … </s>` in the vocabulary's narrowest dtype."""

    split: str
    ids: np.ndarray


def encode_documents(
    documents: Iterable[Document],
    substrate: SubstrateLike,
    *,
    split: tuple[float, float, float],
    seed: int,
    unknown: str,
) -> Iterator[EncodedDocument]:
    """Encode documents one batch after the other; blank ones are passed over.

    A document's split is drawn from a hash of the seed and its text: it depends on no order, stays
    when documents are added, and copies of a text never stand on both sides.

    Raises:
        DataError: a document cannot be encoded; the message says where it stands and why.
    """
    dtype = token_dtype(len(substrate))
    for batch in _batches(documents):
        for document, ids in zip(batch, _encode(batch, substrate, unknown), strict=True):
            name = split_of(document.text, split, seed)
            row = np.array([substrate.bos_id, *ids, substrate.eos_id], dtype=dtype)
            yield EncodedDocument(name, row)


def split_of(text: str, split: tuple[float, float, float], seed: int) -> str:
    """The split that a text falls into."""
    data = text.encode("utf-8", "surrogatepass")
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    draw = int.from_bytes(digest, "little") / 2**64
    bounds = itertools.accumulate(split)
    for name, bound in zip(SPLITS, bounds, strict=True):
        if draw < bound:
            return name
    # Shares that add up to a hair less than one.
    return next(
        name for name, share in zip(reversed(SPLITS), reversed(split), strict=True) if share
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if not document.text.strip():
            continue
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[Document], substrate: SubstrateLike, unknown: str) -> list[list[int]]:
    try:
        return substrate.encode_batch([document.text for document in batch], unknown=unknown)
    except FastgrowError:
        # Which document it was is found by encoding them one by one.
        for document in batch:
            try:
                substrate.encode_batch([document.text], unknown=unknown)
            except SubstrateError as error:
                raise DataError(f"{document.where}: {error}") from error
        raise

"""Encode documents into token ids and assign them to splits."""

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
# Number of characters encoded in one call: enough to use all cores, with little memory.
_BATCH_CHARACTERS = 1 << 20


class EncodedDocument(NamedTuple):
    """A document of a split: `<s> tokens … </s>` in the narrowest dtype of the vocabulary."""

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
    """Encode documents in batches; blank documents are skipped.

    A document's split is drawn from a hash of the seed and its text. It does not depend on the
    order, does not change when documents are added, and is the same for all copies of a text.

    Raises:
        DataError: a document cannot be encoded; the message has its location and the reason.
    """
    dtype = token_dtype(len(substrate))
    for batch in _batches(documents):
        for document, ids in zip(batch, _encode(batch, substrate, unknown), strict=True):
            name = split_of(document.text, split, seed)
            row = np.array([substrate.bos_id, *ids, substrate.eos_id], dtype=dtype)
            yield EncodedDocument(name, row)


def split_of(text: str, split: tuple[float, float, float], seed: int) -> str:
    """Return the name of a text's split."""
    data = text.encode("utf-8", "surrogatepass")
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    draw = int.from_bytes(digest, "little") / 2**64
    bounds = itertools.accumulate(split)
    for name, bound in zip(SPLITS, bounds, strict=True):
        if draw < bound:
            return name
    # The shares may add up to slightly less than one, because of rounding.
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
        # Encode the documents one by one to find the one at fault.
        for document in batch:
            try:
                substrate.encode_batch([document.text], unknown=unknown)
            except SubstrateError as error:
                raise DataError(f"{document.where}: {error}") from error
        raise

"""A text corpus as training, validation and test streams."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastgrow.errors import ConfigError, DataError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.documents import SampleBy
from fastgrow.training.data.encoding import SPLITS, EncodedDocument, encode_documents
from fastgrow.training.data.sources import ListSource, Source, open_source
from fastgrow.training.data.stream import TokenStream, token_dtype
from fastgrow.training.data.token_cache import (
    default_cache_dir,
    entry_path,
    open_entry,
    write_entry,
)


class TextData:
    """A text corpus, split by document and encoded into token streams.

    Args:
        source: a text, JSON Lines or Parquet file; a folder of them; a list of documents; a dataset
            of the `datasets` library (also streaming); a `HubDataset` or its "owner/name".
        substrate: substrate whose tokenizer encodes the text.
        split: shares of documents for training, validation and test. A document is assigned by a
            hash of its text, so the actual shares are approximate.
        seed: random seed of the split.
        cache_dir: folder for encoded streams. None keeps a list of documents in memory and stores
            the streams of other sources in the user's cache folder.
        text_field: field or column that contains the text of a row.
        sample_by: unit of a text file that is a document: "line", "paragraph" or "document".
        unknown: "error" raises an error for a character outside the vocabulary; "unk" encodes it
            as `<unk>`.
        name: name of a list of documents in error messages.

    Attributes:
        train, validation, test: `TokenStream`s; each document is encoded as `<s> tokens … </s>`.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the source has no text, cannot be read or cannot be encoded; the message has the
            file and line, or the document and position.
    """

    train: TokenStream
    validation: TokenStream
    test: TokenStream

    def __init__(
        self,
        source: Any,
        substrate: SubstrateLike,
        *,
        split: tuple[float, float, float] = (0.9, 0.05, 0.05),
        seed: int = 0,
        cache_dir: Path | str | None = None,
        text_field: str = "text",
        sample_by: SampleBy = "line",
        unknown: str = "error",
        name: str = "",
    ) -> None:
        split = _checked_split(split)
        if sample_by not in ("line", "paragraph", "document"):
            raise ConfigError(
                f'sample_by must be "line", "paragraph" or "document", got {sample_by!r}'
            )
        opened = open_source(source, text_field=text_field, sample_by=sample_by, name=name)
        if cache_dir is None and isinstance(opened, ListSource):
            documents = encode_documents(
                opened.documents(), substrate, split=split, seed=seed, unknown=unknown
            )
            streams = _collect(documents, substrate)
        else:
            cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
            streams = _cached(opened, substrate, cache, split=split, seed=seed, unknown=unknown)
        if not any(len(stream) for stream in streams.values()):
            raise DataError(f"{opened.name}: contains no text")
        if not len(streams["train"]):
            documents_in_all = sum(stream.n_documents for stream in streams.values())
            raise DataError(
                f"{opened.name}: none of its {documents_in_all} documents is in the training "
                "split; provide more documents, another seed or split=(1, 0, 0)"
            )
        if not isinstance(opened, ListSource):
            for split_name, stream in streams.items():
                stream.name = f"{opened.name} ({split_name})"
        self._set(streams)

    @classmethod
    def from_splits(
        cls,
        *,
        train: Any,
        validation: Any = (),
        test: Any = (),
        substrate: SubstrateLike,
        **options: Any,
    ) -> TextData:
        """Create a corpus from separate sources for each split.

        Args:
            train, validation, test: sources, as for `TextData`; an empty list for an empty split.
            substrate: substrate whose tokenizer encodes the text.
            **options: cache_dir, text_field, sample_by and unknown, as for `TextData`.

        Raises:
            ConfigError, DataError: as for `TextData`.
        """
        streams = {}
        for name, source in zip(SPLITS, (train, validation, test), strict=True):
            if name != "train" and isinstance(source, list | tuple) and not source:
                streams[name] = _collect([], substrate)[name]
            else:
                whole = cls(source, substrate, split=(1.0, 0.0, 0.0), name=name, **options)
                streams[name] = whole.train
                streams[name].name = name
        data = cls.__new__(cls)
        data._set(streams)
        return data

    def _set(self, streams: dict[str, TokenStream]) -> None:
        self.train = streams["train"]
        self.validation = streams["validation"]
        self.test = streams["test"]

    @property
    def substrate(self) -> SubstrateLike:
        """The substrate of the ids."""
        return self.train.substrate

    def __repr__(self) -> str:
        return f"TextData({self.train}, {self.validation}, {self.test})"


def _checked_split(split: tuple[float, float, float]) -> tuple[float, float, float]:
    numbers = tuple(split)
    fits = len(numbers) == 3 and all(0 <= share <= 1 for share in numbers)
    if not fits or not math.isclose(sum(numbers), 1.0, abs_tol=1e-6):
        raise ConfigError(
            f"split must be three shares for train, validation and test that add up to 1, got "
            f"{split!r}"
        )
    return numbers[0], numbers[1], numbers[2]


def _cached(
    source: Source,
    substrate: SubstrateLike,
    cache_dir: Path,
    *,
    split: tuple[float, float, float],
    seed: int,
    unknown: str,
) -> dict[str, TokenStream]:
    request = {
        "source": source.fingerprint(),
        "substrate": substrate.fingerprint,
        "split": list(split),
        "seed": seed,
        "unknown": unknown,
    }
    path = entry_path(cache_dir, request)
    streams = open_entry(path, request, substrate)
    if streams is None:
        documents = encode_documents(
            source.documents(), substrate, split=split, seed=seed, unknown=unknown
        )
        write_entry(path, request, documents, substrate, source=source.name)
        streams = open_entry(path, request, substrate)
        if streams is None:
            raise DataError(f"{path}: the token cache is damaged although it was just written")
    return streams


def _collect(
    documents: Iterable[EncodedDocument], substrate: SubstrateLike
) -> dict[str, TokenStream]:
    """Collect encoded documents into streams in memory."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for document in documents:
        rows[document.split].append(document.ids)
    empty = np.zeros(0, dtype=token_dtype(len(substrate)))
    streams = {}
    for name, pieces in rows.items():
        ids = np.concatenate([empty, *pieces])
        streams[name] = TokenStream(
            ids,
            substrate,
            n_documents=len(pieces),
            n_characters=int(substrate.n_characters[ids].sum()),
            name=name,
        )
    return streams

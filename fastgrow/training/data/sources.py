"""Sources of documents: files, lists, and datasets of the `datasets` library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastgrow._files import sha256_file
from fastgrow._hub import first_line, is_dataset_name, open_dataset
from fastgrow.errors import ConfigError, DataError
from fastgrow.training.data.documents import (
    SUFFIXES,
    Document,
    SampleBy,
    read_documents,
    text_of,
)


class Source(Protocol):
    """Protocol of a corpus that can be read repeatedly."""

    name: str

    def fingerprint(self) -> Any:
        """Return a JSON value that identifies the content of the documents."""

    def documents(self) -> Iterator[Document]:
        """Yield all documents in order."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face Hub.

    Attributes:
        name: dataset name, "owner/name".
        config: name of the dataset configuration, if it has several.
        split: name of the split to read.
        revision: branch, tag or commit; it is resolved to a commit, which is part of the cache key.
        streaming: stream the dataset while encoding it instead of storing it.
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False


def open_source(source: Any, *, text_field: str, sample_by: SampleBy, name: str = "") -> Source:
    """Open a user's `source` argument as a `Source`.

    Args:
        source: a file, a folder, a list of documents, a `HubDataset` or its name, or a dataset
            object of the `datasets` library.
        text_field: field that contains the text of a row.
        sample_by: unit of a text file that is a document: "line", "paragraph" or "document".
        name: name of a list of documents in error messages.

    Raises:
        DataError: a path does not exist, a folder has no text files, or the Hub cannot be reached.
        ConfigError: the value has an unsupported type.
    """
    if isinstance(source, HubDataset):
        return _open_hub(source, text_field)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.exists():
            return FileSource(path, text_field=text_field, sample_by=sample_by)
        if isinstance(source, str) and is_dataset_name(source) and not _is_file_name(path):
            return _open_hub(HubDataset(source), text_field)
        raise DataError(f"{source}: no such file or folder")
    if isinstance(source, dict):
        raise ConfigError(
            f"the source is a dict of several splits ({', '.join(source)}); pass one of them"
        )
    if hasattr(source, "column_names") and isinstance(source, Iterable):
        return RowSource(source, text_field=text_field, name=name or "dataset")
    if isinstance(source, Sequence):
        return ListSource(source, name=name)
    raise ConfigError(
        "source: expected a file, a folder, a list of documents, a dataset or its name on the Hub; "
        f"got {type(source).__name__}"
    )


def _is_file_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


class FileSource:
    """A file, or all text, JSON Lines and Parquet files in a folder, recursively, sorted by path.

    Raises:
        DataError: the folder has no such file.
    """

    def __init__(self, path: Path, *, text_field: str, sample_by: SampleBy) -> None:
        self.name = str(path)
        self._text_field = text_field
        self._sample_by: SampleBy = sample_by
        self._files = [path]
        if path.is_dir():
            self._files = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and _is_file_name(file) and not file.name.startswith(".")
            )
            if not self._files:
                raise DataError(
                    f"{path}: the folder contains no text file (expected {', '.join(SUFFIXES)})"
                )

    def fingerprint(self) -> Any:
        """Return hash and suffix of each file and how it is read, but not its name or date."""
        try:
            files = [[sha256_file(file), file.suffix.lower()] for file in self._files]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
        return {"files": files, "text_field": self._text_field, "sample_by": self._sample_by}

    def documents(self) -> Iterator[Document]:
        """Yield the documents of each file."""
        for file in self._files:
            yield from read_documents(file, text_field=self._text_field, sample_by=self._sample_by)


class ListSource:
    """A list of documents in memory."""

    def __init__(self, documents: Sequence[str], *, name: str = "") -> None:
        self.name = name or "documents"
        self._place = f"{name} document ".lstrip()
        self._documents = documents

    def fingerprint(self) -> Any:
        """Return a hash of the documents."""
        return {"documents": hash_documents(self.documents())}

    def documents(self) -> Iterator[Document]:
        """Yield the items of the list.

        Raises:
            DataError: an item is not a string.
        """
        for number, text in enumerate(self._documents):
            if not isinstance(text, str):
                raise DataError(f"{self._place}{number}: is {type(text).__name__}, expected str")
            yield Document(text, self._place, number)


class RowSource:
    """A `datasets.Dataset` or `datasets.IterableDataset`.

    Args:
        rows: the dataset.
        text_field: column that contains the text.
        name: name of the dataset in error messages.
        key: a JSON value that identifies the content; None to read all rows an additional time and
            hash them.
    """

    def __init__(self, rows: Any, *, text_field: str, name: str, key: Any = None) -> None:
        self.name = name
        self._rows = rows
        self._text_field = text_field
        self._key = key

    def fingerprint(self) -> Any:
        """Return the key, or a hash of all documents if there is no key."""
        if self._key is not None:
            return {**self._key, "text_field": self._text_field}
        return {"documents": hash_documents(self.documents())}

    def documents(self) -> Iterator[Document]:
        """Yield the texts of the rows.

        Raises:
            DataError: a row does not have the field, or the library failed to read a row.
        """
        place = f"{self.name}, row "
        rows = iter(self._rows)
        number = 0
        while True:
            # `datasets` raises errors of many classes: its own, of file readers and of the network.
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                reason = first_line(error)
                raise DataError(f"{place}{number}: cannot be read ({reason})") from error
            yield Document(text_of(row, self._text_field, f"{place}{number}"), place, number)
            number += 1


def hash_documents(documents: Iterable[Document]) -> str:
    """Return the SHA-256 of the documents and their lengths."""
    digest = hashlib.sha256()
    for document in documents:
        # Lone surrogates raise an error, with their location, when the document is encoded.
        data = document.text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _open_hub(dataset: HubDataset, text_field: str) -> RowSource:
    name = f"Hub dataset {dataset.name!r}"
    rows, commit = open_dataset(
        dataset.name,
        dataset.config,
        dataset.split,
        revision=dataset.revision,
        streaming=dataset.streaming,
    )
    key = None
    if commit is not None:
        key = {
            "hub": dataset.name,
            "revision": commit,
            "config": dataset.config,
            "split": dataset.split,
        }
    return RowSource(rows, text_field=text_field, name=name, key=key)

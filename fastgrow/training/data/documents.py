"""Read documents from files, one at a time, each with its location for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastgrow._hub import first_line
from fastgrow._lines import read_json_lines, read_lines
from fastgrow.errors import DataError

SampleBy = Literal["line", "paragraph", "document"]

_TEXT = frozenset({".txt", ".text"})
_JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
_PARQUET = frozenset({".parquet"})
SUFFIXES = sorted(_TEXT | _JSON_LINES | _PARQUET)


class Document(NamedTuple):
    """A text and its location; messages show `place` followed by `number`."""

    text: str
    place: str
    number: int

    @property
    def where(self) -> str:
        """The location, such as "corpus.txt:12" or "corpus.parquet, row 3"."""
        return f"{self.place}{self.number}"


def read_documents(path: Path, *, text_field: str, sample_by: SampleBy) -> Iterator[Document]:
    """Yield the documents of a file. Its suffix selects the format; the default is text.

    Args:
        path: a text, JSON Lines or Parquet file.
        text_field: field or column that contains the text.
        sample_by: unit of a text file that is a document: "line", "paragraph" (separated by blank
            lines) or "document" (the whole file).

    Raises:
        DataError: the file cannot be read, is not UTF-8 (the message has the byte's offset), or a
            line or column is malformed (the message has the line or row).
    """
    suffix = path.suffix.lower()
    try:
        if suffix in _PARQUET:
            yield from _parquet_rows(path, text_field)
        elif suffix in _JSON_LINES:
            yield from _json_lines(path, text_field)
        else:
            yield from _text(path, sample_by)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _text(path: Path, sample_by: SampleBy) -> Iterator[Document]:
    place = f"{path}:"
    if sample_by == "line":
        for number, line in read_lines(path):
            yield Document(line, place, number)
    elif sample_by == "document":
        yield Document("\n".join(line for _, line in read_lines(path)), place, 1)
    else:
        paragraph: list[str] = []
        for number, line in read_lines(path):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield Document("\n".join(paragraph), place, number - len(paragraph))
                paragraph = []
        if paragraph:
            yield Document("\n".join(paragraph), place, number - len(paragraph) + 1)


def _json_lines(path: Path, field: str) -> Iterator[Document]:
    place = f"{path}:"
    for number, row in read_json_lines(path, expected=f"an object with the field {field!r}"):
        yield Document(text_of(row, field, f"{place}{number}"), place, number)


def _parquet_rows(path: Path, field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    place = f"{path}, row "
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            raise DataError(f"{path}: no column {field!r} (columns: {', '.join(names)})")
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield Document(text_of({field: value}, field, f"{place}{number}"), place, number)
                number += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 in rows {number} to {number + 1023}") from error


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """Return the text of a row.

    Raises:
        DataError: the field is missing or not a string.
    """
    if field not in row:
        names = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: the field {field!r} is missing (fields: {names})")
    text = row[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: the field {field!r} is {type(text).__name__}, expected a string")
    return text

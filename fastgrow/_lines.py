"""Text files and JSON-lines files, line by line; what is wrong in them is named with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgrow.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line end) of each line.

    Raises:
        DataError: the file is not UTF-8; the message has the byte's offset.
        OSError: it cannot be read.
    """
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw
            if number == 1 and raw.startswith(_BYTE_ORDER_MARK):
                line = raw[len(_BYTE_ORDER_MARK) :]
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                position = offset + len(raw) - len(line) + error.start
                raise DataError(
                    f"{path}: not UTF-8: byte 0x{line[error.start]:02x} at offset {position} "
                    f"(line {number}; {error.reason})"
                ) from None
            offset += len(raw)
            yield number, text.removesuffix("\n").removesuffix("\r")


def read_json_lines(
    path: Path, *, expected: str = "an object"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of each line that is not blank.

    Args:
        path: the file.
        expected: what a row is, for the message about one that is not an object.

    Raises:
        DataError: a line is not valid JSON or not an object; or as `read_lines`.
        OSError: the file cannot be read.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected {expected}, got {type(row).__name__}")
        yield number, row

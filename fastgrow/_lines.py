"""Read text and JSON Lines files line by line; errors report the line number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgrow.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without line ending) for each line of a file.

    Raises:
        DataError: the file is not UTF-8; the message contains the byte's offset.
        OSError: the file cannot be read.
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
    """Yield (line number from 1, row) for each line of a JSON Lines file that is not blank.

    Args:
        path: the file.
        expected: description of a row, used in the message if a line is not an object.

    Raises:
        DataError: a line is not valid JSON or not an object, or the file is not UTF-8.
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

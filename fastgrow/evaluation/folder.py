"""The folder that stores the answers of an evaluation, so that it can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import CheckpointError, ConfigError

_REQUEST = "request.json"


class AnswerFolder:
    """A folder with one file of answers per chunk of questions, and a file with the request.

    Args:
        path: the folder; created if it does not exist.
        request: a JSON object that identifies model, questions and settings.

    Raises:
        ConfigError: the folder contains the answers to another request, or other files.
        CheckpointError: the request in the folder is not valid JSON.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self._path = path
        if (path / _REQUEST).exists():
            found = _files.read_json(path / _REQUEST)
            if found != request:
                raise ConfigError(
                    f"{path}: holds another evaluation ({_difference(found, request)})"
                )
            return
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path}: contains other files; pass a new or empty folder for the evaluation"
            )
        _files.write_json(path / _REQUEST, request)

    def read(self, chunk: int, questions: list[int]) -> list[dict[str, Any]] | None:
        """Read the answers of a chunk; None if there are none yet.

        Args:
            chunk: number of the chunk.
            questions: indices of its questions.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = self._file(chunk)
        if not file.exists():
            return None
        records = _files.read_json(file)
        whole = isinstance(records, list) and all(isinstance(r, dict) for r in records)
        if not whole or [record.get("question") for record in records] != questions:
            raise CheckpointError(
                f"{file}: does not contain the answers to its {len(questions)} questions; "
                "delete the file to compute them again"
            )
        return records

    def write(self, chunk: int, records: list[dict[str, Any]]) -> None:
        """Write the answers of a chunk."""
        _files.write_json(self._file(chunk), records)

    def _file(self, chunk: int) -> Path:
        return self._path / f"chunk-{chunk:05d}.json"


def _difference(found: Any, wanted: dict[str, Any], inside: str = "") -> str:
    """Describe the first difference between two requests."""
    if not isinstance(found, dict):
        return "its request is not an object"
    for name, value in wanted.items():
        stored = found.get(name)
        if isinstance(value, dict) and isinstance(stored, dict) and stored != value:
            return _difference(stored, value, f"{name}.")
        if stored != value:
            return f"{inside}{name} is {_short(stored)}, expected {_short(value)}"
    return f"it also has {inside}{', '.join(sorted(set(found) - set(wanted)))}"


def _short(value: Any) -> str:
    """Shorten long values such as hashes."""
    text = str(value)
    return text if len(text) < 64 else text[:12] + "…"

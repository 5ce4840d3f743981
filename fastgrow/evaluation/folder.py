"""The folder in which an evaluation keeps its answers, so that a stopped one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import CheckpointError, ConfigError

_REQUEST = "request.json"


class AnswerFolder:
    """Answers to chunks of questions, one file a chunk, beside what they are answers to.

    Args:
        path: the folder; made if it does not exist.
        request: a JSON object that names model, questions and settings.

    Raises:
        ConfigError: the folder holds the answers to another request, or something else.
        CheckpointError: the request in it is not valid JSON.
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
                f"{path}: holds something else; an evaluation needs a folder of its own"
            )
        _files.write_json(path / _REQUEST, request)

    def read(self, chunk: int, questions: list[int]) -> list[dict[str, Any]] | None:
        """The answers of a chunk; None if there are none yet.

        Args:
            chunk: its number.
            questions: the indices of its questions.

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
                f"{file}: does not hold the answers to its {len(questions)} questions; "
                "delete it to have them asked again"
            )
        return records

    def write(self, chunk: int, records: list[dict[str, Any]]) -> None:
        """Keep the answers of a chunk."""
        _files.write_json(self._file(chunk), records)

    def _file(self, chunk: int) -> Path:
        return self._path / f"chunk-{chunk:05d}.json"


def _difference(found: Any, wanted: dict[str, Any], inside: str = "") -> str:
    """What sets two requests apart, in words."""
    if not isinstance(found, dict):
        return "its request is not an object"
    for name, value in wanted.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict) and there != value:
            return _difference(there, value, f"{name}.")
        if there != value:
            return f"{inside}{name} is {_short(there)}, expected {_short(value)}"
    return f"it also states {inside}{', '.join(sorted(set(found) - set(wanted)))}"


def _short(value: Any) -> str:
    """Hashes are told apart by their beginning."""
    text = str(value)
    return text if len(text) < 64 else text[:12] + "…"

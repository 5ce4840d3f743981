"""`read_questions`: load the questions of a task from a JSON-lines file or from the Hub."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgrow._hub import first_line, is_dataset_name, open_dataset
from fastgrow._lines import read_json_lines
from fastgrow.errors import ConfigError, DataError
from fastgrow.evaluation.questions import Question
from fastgrow.evaluation.tasks import Task


@dataclass(frozen=True)
class QuestionSet:
    """The questions of an evaluation.

    Attributes:
        task: the task.
        questions: the questions, in the order of the source.
        source: description of the source.
        available: number of questions in the source, before sampling.
        note: why scores are not comparable with the published ones; "" if they are.
    """

    task: Task
    questions: tuple[Question, ...]
    source: str
    available: int
    note: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the questions, in order."""
        content = json.dumps([asdict(question) for question in self.questions], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def read_questions(
    task: Task,
    source: Path | str | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> QuestionSet:
    """Load the questions of a task.

    Args:
        task: the task.
        source: a JSON-lines file; a folder that contains it under its default name (`Task.file`);
            the "owner/name" of a dataset on the Hub with the default configuration and split; or
            None for the default dataset on the Hub (`Task.hub`).
        limit: size of a random sample of the questions. SQuAD and OPUS-100 are always sampled, as
            in the papers: 256 questions, 128 pairs.
        seed: random seed of the sample; the order of the questions is kept.

    Raises:
        DataError: the file is missing, the Hub is not reachable, a row is not a question of this
            task, or there is no question; the message contains the file and line.
        ConfigError: limit is not positive.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    name, rows, in_file = _open(task, source)
    questions = []
    for where, row in rows:
        question = task.parse(row, where)
        if question is not None:
            questions.append(question)
    if not questions:
        raise DataError(f"{name}: holds no question of the task {task.name}")
    wanted = min(size for size in (limit, task.sample, len(questions)) if size is not None)
    note = task.note
    if task.name == "squad" and in_file:
        note = (
            "not comparable with the published scores: those are for the validation set of SQuAD "
            "2.0, these questions are from a local file, e.g. of SQuAD 1.1"
        )
    return QuestionSet(task, _sample(questions, wanted, seed), name, len(questions), note)


def _sample(questions: list[Question], size: int, seed: int) -> tuple[Question, ...]:
    if size == len(questions):
        return tuple(questions)
    chosen = random.Random(seed).sample(range(len(questions)), size)
    return tuple(questions[index] for index in sorted(chosen))


def _open(
    task: Task, source: Path | str | None
) -> tuple[str, Iterator[tuple[str, dict[str, Any]]], bool]:
    """Return a description of the source, (location, row) of its rows, and whether it is a file."""
    if source is None:
        return _open_hub(task, task.hub.name)
    path = Path(source)
    if path.is_dir():
        path = path / task.file
    if path.exists():
        return str(path), _file_rows(path), True
    if isinstance(source, str) and is_dataset_name(source) and not path.suffix:
        return _open_hub(task, source)
    raise DataError(f"{path}: no such file; expected the questions of the task {task.name}")


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for number, row in read_json_lines(path, expected="an object, one question a line"):
            yield f"{path}:{number}", row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open_hub(task: Task, name: str) -> tuple[str, Iterator[tuple[str, dict[str, Any]]], bool]:
    rows, commit = open_dataset(name, task.hub.config, task.hub.split)
    parts = [part for part in (name, task.hub.config, task.hub.split) if part is not None]
    title = f"Hub dataset {' '.join(parts)}" + ("" if commit is None else f" at {commit[:12]}")
    return title, _hub_rows(rows, title), False


def _hub_rows(rows: Any, title: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    iterator = iter(rows)
    while True:
        # The library raises various exceptions, e.g. of its readers and of the network.
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            reason = first_line(error)
            raise DataError(f"{title}, row {number}: cannot be read ({reason})") from error
        yield f"{title}, row {number}", row
        number += 1

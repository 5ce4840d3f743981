"""The questions of the tasks, and how they are parsed from rows of files and datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastgrow.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LANGUAGES = {"en": "English", "ru": "Russian", "zh": "Chinese"}

_FIELDS = ("question", "choices", "answer")
_SQUAD_QUERY = re.compile(
    r"Title: .*?\nBackground: (?P<context>.*)\nQuestion: (?P<question>.*?)\nAnswer:", re.DOTALL
)


@dataclass(frozen=True)
class ChoiceQuestion:
    """A multiple-choice question; the correct choice is `choices[answer]`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None

    @property
    def key(self) -> str:
        """Letter of the correct choice."""
        return LETTERS[self.answer]


@dataclass(frozen=True)
class ReadingQuestion:
    """A question whose answer is part of a text; each of `answers` is correct."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Translation:
    """A sentence and its translation; the languages are named in English."""

    id: str
    source: str
    target: str
    text: str
    reference: str


Question = ChoiceQuestion | ReadingQuestion | Translation


def choice_question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
    """Parse a row of a multiple-choice task.

    A row is either `{question, choices: [text, …], answer: index}` with `id` and `subject`
    optional, or in the format of ARC, OpenBookQA and CommonsenseQA on the Hub: `{question or
    question_stem, choices: {text, label}, answerKey}`. Choices are always labelled A, B, …, even if
    the source has other labels such as numbers.

    Raises:
        DataError: a field is missing or of the wrong type, there are fewer than two choices, or the
            answer is not one of them; the message contains `where` and the expected value.
    """
    if "answerKey" in row:
        stem = "question_stem" if "question_stem" in row else "question"
        choices, answer = _labelled_choices(row, where)
    else:
        stem = "question"
        for name in _FIELDS:
            _require(row, name, where)
        choices, answer = _texts(row, "choices", where), row["answer"]
        if not isinstance(answer, int) or isinstance(answer, bool):
            raise DataError(
                f"{where}: the field 'answer' is {answer!r}, expected the correct choice's index"
            )
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"{where}: the field 'choices' has {len(choices)} items, expected 2 to {len(LETTERS)}"
        )
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: the field 'answer' is {answer}, expected 0 to {len(choices) - 1} for "
            f"{len(choices)} choices"
        )
    subject = row.get("subject")
    return ChoiceQuestion(
        id=_id(row, where),
        question=_text(row, stem, where),
        choices=choices,
        answer=answer,
        subject=None if subject is None else _text(row, "subject", where),
    )


def reading_question(row: Mapping[str, Any], where: str) -> ReadingQuestion | None:
    """Parse a row of SQuAD; None for a question without an answer (version 2).

    A row is either in the format of the Hub, `{id, context, question, answers: {text: […]}}`, or
    `{id, query, answers_text: […]}`, where the query consists of title, background, question and
    "Answer:".

    Raises:
        DataError: a field is missing or of the wrong type; the message contains `where`.
    """
    if "query" in row:
        query = _text(row, "query", where)
        parts = _SQUAD_QUERY.fullmatch(query)
        if parts is None:
            raise DataError(
                f"{where}: the field 'query' has the wrong format; expected four lines "
                "'Title: …', 'Background: …', 'Question: …' and 'Answer:'"
            )
        context, question = parts["context"], parts["question"]
        answers = _texts(row, "answers_text", where)
    else:
        context, question = _text(row, "context", where), _text(row, "question", where)
        answers = _texts(_mapping(row, "answers", where), "text", f"{where}: in 'answers'")
    if not answers:
        return None
    return ReadingQuestion(_id(row, where), context, question, answers)


def translation(row: Mapping[str, Any], where: str, source: str, target: str) -> Translation:
    """Parse a row of OPUS-100, `{translation: {en: …, ru: …}}`, for one direction.

    Raises:
        DataError: a language is missing or its text is not a string; the message contains `where`.
    """
    texts = _mapping(row, "translation", where)
    inside = f"{where}: in 'translation'"
    return Translation(
        id=_id(row, where),
        source=LANGUAGES[source],
        target=LANGUAGES[target],
        text=_text(texts, source, inside),
        reference=_text(texts, target, inside),
    )


def _labelled_choices(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    choices = _mapping(row, "choices", where)
    inside = f"{where}: in 'choices'"
    texts, labels = _texts(choices, "text", inside), _texts(choices, "label", inside)
    key = _text(row, "answerKey", where)
    if len(labels) != len(texts) or key not in labels:
        raise DataError(
            f"{where}: the field 'answerKey' is {key!r}, expected one of the "
            f"{len(texts)} choices' labels {', '.join(labels)}"
        )
    return texts, labels.index(key)


def _require(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: the field {name!r} is missing (fields: {fields})")
    return row[name]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    return _checked(_require(row, name, where), f"{where}: the field {name!r}")


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is {type(value).__name__}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds a lone surrogate U+{ord(value[error.start]):04X} "
            f"at position {error.start}, which is not a character"
        ) from None
    return value


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = _require(row, name, where)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{where}: the field {name!r} is {type(value).__name__}, expected a list of strings"
        )
    return tuple(
        _checked(text, f"{where}: the field {name!r}, item {index},")
        for index, text in enumerate(value)
    )


def _mapping(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = _require(row, name, where)
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: the field {name!r} is {type(value).__name__}, expected an object"
        )
    return value


def _id(row: Mapping[str, Any], where: str) -> str:
    """Return the row's id; for rows without ids, their number in the file."""
    value = str(row.get("id", where.rsplit(":", 1)[-1].rsplit(" ", 1)[-1]))
    return _checked(value, f"{where}: the field 'id'")

"""The questions of the tasks, and how a row of a file or a dataset becomes one."""

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
    """A question with one right choice, `choices[answer]`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None

    @property
    def key(self) -> str:
        """The right choice's letter."""
        return LETTERS[self.answer]


@dataclass(frozen=True)
class ReadingQuestion:
    """A question whose answer stands in a text; each of `answers` is right."""

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
    """A row of a multiple-choice task.

    Either `{question, choices: [text, …], answer: index}` with `id` and `subject` optional, or as
    the Hub has ARC, OpenBookQA and CommonsenseQA: `{question or question_stem, choices: {text,
    label}, answerKey}`. Choices are lettered anew from A, also where the source numbers them.

    Raises:
        DataError: a field is missing or of another kind, there are fewer than two choices, or the
            answer is none of them; the message has `where`, and what was expected.
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
                f"{where}: the field 'answer' is {answer!r}, expected the right choice's index"
            )
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"{where}: the field 'choices' has {len(choices)} of them, expected 2 to {len(LETTERS)}"
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
    """A row of SQuAD; None for a question that has no answer (version 2).

    Either as the Hub has it, `{id, context, question, answers: {text: […]}}`, or `{id, query,
    answers_text: […]}`, whose query holds title, background, question and "Answer:".

    Raises:
        DataError: a field is missing or of another kind; the message has `where`.
    """
    if "query" in row:
        query = _text(row, "query", where)
        parts = _SQUAD_QUERY.fullmatch(query)
        if parts is None:
            raise DataError(
                f"{where}: the field 'query' does not read 'Title: …, Background: …, "
                "Question: …, Answer:' on lines of their own"
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
    """A row of OPUS-100, `{translation: {en: …, ru: …}}`, in one direction.

    Raises:
        DataError: a language is missing or its text is not a string; the message has `where`.
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
            f"at position {error.start}, which is no character"
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
    """The row's own id, or its place: files without ids are read in order."""
    own = str(row.get("id", where.rsplit(":", 1)[-1].rsplit(" ", 1)[-1]))
    return _checked(own, f"{where}: the field 'id'")

"""The benchmark tasks: source and prompt of their questions, and maximum length of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastgrow.errors import ConfigError
from fastgrow.evaluation import prompts
from fastgrow.evaluation.questions import (
    Question,
    ReadingQuestion,
    Translation,
    choice_question,
    reading_question,
    translation,
)

Kind = Literal["choice", "reading", "translation"]

# The papers use only SQuAD questions whose first answer has at most this many characters.
SQUAD_ANSWER_CHARACTERS = 8
SQUAD_QUESTIONS = 256
OPUS_PAIRS = 128
LONGEST_ANSWER = 100


@dataclass(frozen=True)
class HubRows:
    """A split of a dataset on the Hugging Face Hub."""

    name: str
    config: str | None
    split: str


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: name for `--tasks`.
        title: title in tables.
        kind: `choice`, `reading` or `translation`; determines the scores.
        file: default name of the JSON-lines file in a data folder.
        hub: dataset with the same questions on the Hub.
        prompt: function from a question to its prompt.
        parse: function from a row and its location (for messages) to a question; None if the row is
            to be left out.
        new_tokens: function from a question to the maximum number of tokens of an answer.
        sample: number of questions sampled, as in the papers; None for all.
        note: remark on the comparison with the published scores.
    """

    name: str
    title: str
    kind: Kind
    file: str
    hub: HubRows
    prompt: Callable[[Any], str]
    parse: Callable[[Mapping[str, Any], str], Question | None]
    new_tokens: Callable[[Any], int]
    sample: int | None = None
    note: str = ""


def _letter_tokens(count: int) -> Callable[[Question], int]:
    return lambda question: count


def _answer_tokens(question: ReadingQuestion | Translation) -> int:
    """Return the papers' limit: the number of characters of the gold answer, at most 100."""
    answer = question.answers[0] if isinstance(question, ReadingQuestion) else question.reference
    return max(1, min(len(answer), LONGEST_ANSWER))


def _short_reading(row: Mapping[str, Any], where: str) -> ReadingQuestion | None:
    question = reading_question(row, where)
    if question is None or not 0 < len(question.answers[0]) <= SQUAD_ANSWER_CHARACTERS:
        return None
    return question


def _choice_task(
    name: str,
    title: str,
    file: str,
    hub: HubRows,
    *,
    prompt: Callable[[Any], str] = prompts.choice_prompt,
    new_tokens: int = 2,
    note: str = "",
) -> Task:
    return Task(
        name, title, "choice", file, hub, prompt, choice_question, _letter_tokens(new_tokens),
        note=note,
    )  # fmt: skip


def _opus_task(source: str, target: str) -> Task:
    pair = "-".join(sorted((source, target)))
    return Task(
        f"opus-{source}-{target}",
        f"OPUS-100 {source}→{target}",
        "translation",
        f"opus100_{pair}_val.jsonl",
        HubRows("Helsinki-NLP/opus-100", pair, "validation"),
        prompts.translation_prompt,
        partial(translation, source=source, target=target),
        _answer_tokens,
        sample=OPUS_PAIRS,
    )


_ALL = [
    _choice_task(
        "mmlu",
        "MMLU",
        "mmlu_test.jsonl",
        HubRows("cais/mmlu", "all", "test"),
        prompt=prompts.mmlu_prompt,
        new_tokens=1,
    ),
    _choice_task(
        "arc-easy",
        "ARC-e",
        "arc_easy_val.jsonl",
        HubRows("allenai/ai2_arc", "ARC-Easy", "validation"),
    ),
    _choice_task(
        "arc-challenge",
        "ARC-c",
        "arc_challenge_val.jsonl",
        HubRows("allenai/ai2_arc", "ARC-Challenge", "validation"),
    ),
    _choice_task(
        "csqa",
        "CSQA",
        "csqa_val.jsonl",
        HubRows("tau/commonsense_qa", None, "validation"),
    ),
    _choice_task(
        "openbookqa",
        "OpenBookQA",
        "openbookqa_test.jsonl",
        HubRows("allenai/openbookqa", "main", "test"),
        note="not among the papers' tasks",
    ),
    Task(
        "squad",
        "SQuAD",
        "reading",
        "squad11_val_1000.jsonl",
        HubRows("rajpurkar/squad_v2", None, "validation"),
        prompts.reading_prompt,
        _short_reading,
        _answer_tokens,
        sample=SQUAD_QUESTIONS,
    ),
    *(
        _opus_task(source, target)
        for source, target in (("en", "ru"), ("ru", "en"), ("en", "zh"), ("zh", "en"))
    ),
]
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""The tasks by name."""
_GROUPS = {"arc": ("arc-easy", "arc-challenge")}


def find_tasks(name: str) -> list[Task]:
    """Return the task of that name, or the tasks of a group ("arc").

    Raises:
        ConfigError: the name is unknown; the message lists the names.
    """
    names = _GROUPS.get(name, (name,))
    if names[0] not in TASKS:
        known = ", ".join([*TASKS, *_GROUPS])
        raise ConfigError(f"no task {name!r}; the tasks are {known}")
    return [TASKS[one] for one in names]

"""Prompts against files written by hand in the papers' formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgrow.evaluation import TASKS
from fastgrow.evaluation.prompts import cloze_prompt
from fastgrow.evaluation.questions import (
    ChoiceQuestion,
    Question,
    ReadingQuestion,
    Translation,
)

GOLDEN = Path(__file__).parent / "golden"

FLOATS = ChoiceQuestion(
    "1", "Which of these floats on water? ", ("lead", "cork", " iron", "«ртуть»"), 1
)
PLANT = ChoiceQuestion(
    "2", "What does a plant need?\nThink of a leaf.", ("light", "a hat", "noise"), 0
)
BOAT = ChoiceQuestion(
    "3", "Where would you keep a boat?", ("harbour", "attic", "船", "oven", "drawer "), 0
)
MILL = ReadingQuestion(
    "4",
    "The mill was built in 1782.\nIt burned down twice.",
    "When was the mill built?",
    ("1782",),
)
DOOR = Translation("5", "English", "Russian", "The door is open.", "Дверь открыта.")


@pytest.mark.parametrize(
    ("task", "question", "file"),
    [
        ("mmlu", FLOATS, "mmlu"),
        ("arc-easy", PLANT, "arc"),
        ("arc-challenge", PLANT, "arc"),
        ("csqa", BOAT, "csqa"),
        ("squad", MILL, "squad"),
        ("opus-en-ru", DOOR, "opus"),
    ],
)
def test_prompts_match_to_the_byte(task: str, question: Question, file: str) -> None:
    assert TASKS[task].prompt(question).encode() == (GOLDEN / f"{file}.txt").read_bytes()


def test_a_choice_continues_the_question_alone() -> None:
    assert cloze_prompt(FLOATS).encode() == (GOLDEN / "cloze.txt").read_bytes()


def test_answers_have_the_papers_maximum_length() -> None:
    limits = {name: TASKS[name].new_tokens(FLOATS) for name in ("mmlu", "arc-easy", "csqa")}
    assert limits == {"mmlu": 1, "arc-easy": 2, "csqa": 2}
    assert TASKS["squad"].new_tokens(MILL) == 4
    assert TASKS["opus-en-ru"].new_tokens(DOOR) == 14
    long = Translation("6", "English", "Russian", "", "я" * 300)
    assert TASKS["opus-en-ru"].new_tokens(long) == 100

"""Parsing questions from rows of files and datasets, and errors for invalid rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgrow.errors import ConfigError, DataError
from fastgrow.evaluation import TASKS, find_tasks, read_questions
from fastgrow.evaluation.questions import ChoiceQuestion, ReadingQuestion, Translation

GOOD = {"id": "q1", "question": "Is it?", "choices": ["yes", "no"], "answer": 1}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **fields}.items() if value is not None}


def test_both_shapes_of_choices_are_one_question(tmp_path: Path) -> None:
    hub = {
        "id": "q1",
        "question": "Is it?",
        "choices": {"text": ["yes", "no"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    stem = {**hub, "question_stem": hub["question"]}
    del stem["question"]
    found = read_questions(TASKS["csqa"], write(tmp_path / "a.jsonl", GOOD, hub, stem))
    assert set(found.questions) == {ChoiceQuestion("q1", "Is it?", ("yes", "no"), 1)}
    assert found.questions[0].key == "B"
    assert found.available == 3


def test_both_shapes_of_squad_are_one_question(tmp_path: Path) -> None:
    local = {
        "id": "s",
        "title": "T",
        "query": "Title: T\nBackground: One.\nTwo.\nQuestion: How many?\nAnswer:",
        "answers_text": ["two", "2"],
        "choices": ["two"],
    }
    hub = {
        "id": "s",
        "title": "T",
        "context": "One.\nTwo.",
        "question": "How many?",
        "answers": {"text": ["two", "2"], "answer_start": [0, 0]},
    }
    unanswerable = {**hub, "answers": {"text": [], "answer_start": []}}
    long = {**hub, "answers": {"text": ["nine long"], "answer_start": [0]}}
    eight = {**hub, "answers": {"text": ["8 letter"], "answer_start": [0]}}
    file = write(tmp_path / "squad.jsonl", local, hub, unanswerable, long, eight)
    found = read_questions(TASKS["squad"], file)
    expected = ReadingQuestion("s", "One.\nTwo.", "How many?", ("two", "2"))
    assert found.questions[:2] == (expected, expected)
    assert [q.answers for q in found.questions[2:]] == [("8 letter",)]
    assert "not comparable" in found.note


def test_a_translation_goes_both_ways(tmp_path: Path) -> None:
    file = write(tmp_path / "o.jsonl", {"translation": {"en": "hello", "ru": "привет"}})
    assert read_questions(TASKS["opus-en-ru"], file).questions == (
        Translation("1", "English", "Russian", "hello", "привет"),
    )
    back = read_questions(TASKS["opus-ru-en"], file).questions[0]
    assert (back.source, back.text, back.reference) == ("Russian", "привет", "hello")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(question=None), r"the field 'question' is missing \(fields: 'id', 'choices'"),
        (changed(question=3), "'question' is int, expected a string"),
        (changed(choices=None), "the field 'choices' is missing"),
        (changed(choices="yes"), "'choices' is str, expected a list of strings"),
        (changed(choices=["yes"], answer=0), "'choices' has 1 items, expected 2 to 26"),
        (changed(choices=["yes", 2]), "'choices', item 1, is int, expected a string"),
        (changed(answer=None), "the field 'answer' is missing"),
        (changed(answer="B"), "'answer' is 'B', expected the correct choice's index"),
        (changed(answer=True), "'answer' is True, expected the correct choice's index"),
        (changed(answer=2), "'answer' is 2, expected 0 to 1 for 2 choices"),
        (changed(answer=-1), "'answer' is -1, expected 0 to 1 for 2 choices"),
        (changed(question="a\ud800"), r"lone surrogate U\+D800 at position 1"),
        (changed(id="\ud800"), r"the field 'id' holds a lone surrogate U\+D800"),
        (changed(answerKey="C", choices={"text": ["a", "b"], "label": ["A", "B"]}),
         "'answerKey' is 'C', expected one of the 2 choices' labels A, B"),
        (["a", "list"], "expected an object, one question a line, got list"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "q.jsonl", GOOD, GOOD, row)
    with pytest.raises(DataError, match=rf"q\.jsonl:3: .*{message}"):
        read_questions(TASKS["csqa"], file)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"csqa_val\.jsonl: no such file; .* task csqa"):
        read_questions(TASKS["csqa"], tmp_path)
    empty = write(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no question of the task csqa"):
        read_questions(TASKS["csqa"], empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(GOOD) + "\n{")
    with pytest.raises(DataError, match=r"broken\.jsonl:2: not valid JSON"):
        read_questions(TASKS["csqa"], broken)
    squad = write(tmp_path / "squad.jsonl", {"id": "s", "query": "Who?", "answers_text": ["x"]})
    with pytest.raises(DataError, match=r"squad\.jsonl:1: the field 'query' has the wrong format"):
        read_questions(TASKS["squad"], squad)
    with pytest.raises(ConfigError, match="limit must be at least 1, got 0"):
        read_questions(TASKS["csqa"], empty, limit=0)
    with pytest.raises(ConfigError, match="no task 'mmul'; the tasks are mmlu, arc-easy"):
        find_tasks("mmul")


def test_samples_are_drawn_by_seed_and_keep_their_order(tmp_path: Path) -> None:
    rows = [changed(id=str(i)) for i in range(40)]
    file = write(tmp_path / "q.jsonl", *rows)

    def ids(**options: int) -> list[int]:
        return [int(q.id) for q in read_questions(TASKS["csqa"], file, **options).questions]

    assert ids() == ids(limit=99) == list(range(40))
    five = ids(limit=5)
    assert len(five) == 5
    assert five == sorted(five) == ids(limit=5)
    assert five != ids(limit=5, seed=1)
    squad = {"context": "c", "question": "q", "answers": {"text": ["a"]}}
    many = write(tmp_path / "squad.jsonl", *[{**squad, "id": str(i)} for i in range(300)])
    assert len(read_questions(TASKS["squad"], many).questions) == 256
    assert read_questions(TASKS["squad"], many).available == 300


def test_the_papers_split_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def open_dataset(*arguments: Any) -> tuple[list[dict[str, Any]], str]:
        asked.append(arguments)
        return [GOOD, {"id": "bad"}], "c0ffee" * 7

    monkeypatch.setattr("fastgrow.evaluation.reading.open_dataset", open_dataset)
    with pytest.raises(
        DataError, match="allenai/ai2_arc ARC-Easy validation at c0ffeec0ffee, row 1: the field"
    ):
        read_questions(TASKS["arc-easy"])
    with pytest.raises(DataError, match="Hub dataset mine/quiz all test at"):
        read_questions(TASKS["mmlu"], "mine/quiz")
    assert asked == [
        ("allenai/ai2_arc", "ARC-Easy", "validation"),
        ("mine/quiz", "all", "test"),
    ]


@pytest.mark.acceptance
def test_the_development_files(evaluation_data: Path) -> None:
    counts = {
        name: len(read_questions(TASKS[name], evaluation_data).questions)
        for name in ("mmlu", "arc-easy", "arc-challenge", "csqa", "openbookqa", "squad")
    }
    assert counts == {
        "mmlu": 14_042,
        "arc-easy": 570,
        "arc-challenge": 299,
        "csqa": 1_221,
        "openbookqa": 500,
        "squad": 256,
    }

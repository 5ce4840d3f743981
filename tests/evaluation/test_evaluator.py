"""Whole evaluations of models with prescribed answers, also interrupted ones."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rigged import CharacterSubstrate, Rigged
from torch import Tensor, nn

from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.evaluation import (
    PUBLISHED,
    TASKS,
    EvaluationSettings,
    QuestionSet,
    TaskResult,
    evaluate,
)
from fastgrow.evaluation.questions import ChoiceQuestion, ReadingQuestion, Translation


def _question(i: int) -> ChoiceQuestion:
    choices = [f"thing {i}{'wxyz'[j]}{'!' * (j * i % 5)}" for j in range(3 + i % 2)]
    key = (2 * i + i // 3) % 3
    subject = "odd" if i % 2 else "even"
    return ChoiceQuestion(str(i), f"What is item {i}?", tuple(choices), key, subject)


QUESTIONS = tuple(_question(i) for i in range(20))
FAST = EvaluationSettings(chunk=6, resamples=50)


def question_set(name: str = "mmlu", questions: Any = QUESTIONS) -> QuestionSet:
    return QuestionSet(TASKS[name], tuple(questions), "here", len(questions))


def always(letter: str) -> Rigged:
    return Rigged(lambda text: f"{letter}")


def knows_all() -> Rigged:
    """Answers each question with its key; the correct choice has the highest likelihood."""
    keys = {question.question: question for question in QUESTIONS}

    def say(text: str) -> str | None:
        if "Answer:" not in text:
            return None
        asked, answered = text.removeprefix("<s>Question: ").split("\nAnswer:")
        question = keys[asked.split("\nOptions:")[0]]
        if "\nOptions:" in asked:
            return f" {question.key}"[len(answered) : len(answered) + 1] or "</s>"
        right = f" {question.choices[question.answer]}"
        return right[len(answered)] if right.startswith(answered) and answered != right else None

    return Rigged(say)


@pytest.mark.parametrize("letter", "ABC")
@pytest.mark.parametrize("task", ["mmlu", "arc-easy", "csqa"])
def test_always_one_letter_scores_that_letters_share(letter: str, task: str) -> None:
    result = evaluate(always(letter), question_set(task), FAST)
    share = 100 * sum(question.key == letter for question in QUESTIONS) / len(QUESTIONS)
    score = result.scores["first letter"]
    assert 0 < share < 100
    assert score.mean == pytest.approx(share)
    assert (score.sigma, score.ci) == (0, 0)
    assert result.keys[letter] == pytest.approx(share)
    assert result.no_letter == pytest.approx(0)
    assert result.papers == score
    assert result.chance == pytest.approx(100 * (1 / 3 + 1 / 4) / 2)
    for subject in ("odd", "even"):
        own = [question.key == letter for question in QUESTIONS if question.subject == subject]
        assert result.subjects[subject] == pytest.approx(100 * sum(own) / len(own))


def test_knowing_the_answers_scores_a_hundred_under_both_protocols() -> None:
    # Its answers start with a space, so they need two tokens, the limit of ARC's protocol.
    result = evaluate(knows_all(), question_set("arc-easy"), FAST)
    assert {name: score.mean for name, score in result.scores.items()} == {
        "first letter": 100,
        "likelihood": 100,
        "likelihood per character": 100,
    }
    # One token is the space alone: MMLU's protocol finds no letter in it.
    assert evaluate(knows_all(), question_set("mmlu"), FAST).scores["first letter"].mean == 0


def test_a_letter_that_was_not_offered_or_none_is_wrong() -> None:
    three = [question for question in QUESTIONS if len(question.choices) == 3]
    for said in ("D", "7", " ", "</s>"):
        result = evaluate(always(said), question_set(questions=three), FAST)
        assert result.scores["first letter"].mean == 0
        assert result.no_letter == pytest.approx(100)
    lower = evaluate(always("a"), question_set(questions=three), FAST)
    assert lower.no_letter == pytest.approx(0)
    assert lower.scores["first letter"].mean == pytest.approx(lower.keys["A"])


def test_per_character_takes_length_out() -> None:
    # Every token is as likely: the shortest choice wins by the sum, and by the mean per character
    # the one whose leading space weighs least, which is the longest.
    question = ChoiceQuestion("1", "Which?", ("aaaaaaaa", "a", "aaaa"), 1)
    uniform = Rigged(lambda text: None)
    result = evaluate(uniform, question_set(questions=[question] * 2), FAST)
    assert result.scores["likelihood"].mean == 100
    assert result.scores["likelihood per character"].mean == 0
    long = dataclasses.replace(question, answer=0)
    result = evaluate(uniform, question_set(questions=[long]), FAST)
    assert result.scores["likelihood"].mean == 0
    assert result.scores["likelihood per character"].mean == 100


def test_reading_scores() -> None:
    questions = [
        ReadingQuestion("1", "The mill is old.", "What is old?", ("The mill", "mill")),
        ReadingQuestion("2", "It has ten doors.", "How many?", ("ten", "10")),
    ]

    def say(text: str) -> str:
        said = "mill" if "mill" in text else "a TENt"
        answered = text.split("Answer:")[1]
        return said[len(answered)] if len(answered) < len(said) else "</s>"

    result = evaluate(Rigged(say), question_set("squad", questions), FAST)
    # "mill" does not contain the first answer "The mill" but equals the second. Answers to the
    # other question have three tokens, as many as "ten" has characters: "a T" of "a TENt".
    assert {name: score.mean for name, score in result.scores.items()} == {
        "substring": 0,
        "exact match": 50,
        "F1": 50,
    }
    said = evaluate(
        Rigged(say), question_set("squad", [dataclasses.replace(questions[1], answers=("TEN", ))]),
        FAST,
    )  # fmt: skip
    assert said.scores["substring"].mean == 0
    holds = ReadingQuestion("3", "x", "y", ("Ill",))
    assert evaluate(
        Rigged(lambda text: "i" if text.endswith(":") else "l"),
        question_set("squad", [holds]),
        FAST,
    ).scores["substring"].mean == 100  # fmt: skip
    assert result.chance is None
    assert result.no_letter is None


def test_a_task_without_choices_needs_answers() -> None:
    questions = [ReadingQuestion("1", "c", "q", ("a",))]
    settings = EvaluationSettings(protocols=("likelihood",))
    with pytest.raises(ConfigError, match="squad has no choices: it needs the protocol 'generate'"):
        evaluate(always("A"), question_set("squad", questions), settings)


def test_a_protocol_alone() -> None:
    generate = evaluate(always("A"), question_set(), EvaluationSettings(protocols=("generate",)))
    assert list(generate.scores) == ["first letter"]
    assert list(generate.cut) == ["generate"]
    likely = evaluate(knows_all(), question_set(), EvaluationSettings(protocols=("likelihood",)))
    assert list(likely.scores) == ["likelihood", "likelihood per character"]
    assert likely.papers is None


def test_prompts_start_with_bos_unless_disabled() -> None:
    for start in (True, False):
        model = always("A")
        settings = EvaluationSettings(document_start=start, resamples=5)
        evaluate(model, question_set("arc-easy", QUESTIONS[:3]), settings)
        assert len(model.texts_read) > 3
        for text in model.texts_read:
            assert text.startswith("<s>Question: " if start else "Question: ")


def test_cut_and_unknown_are_counted() -> None:
    questions = [
        ChoiceQuestion("1", "short", ("a", "b"), 0),
        ChoiceQuestion("2", "long " * 20, ("a", "b"), 0),
        ChoiceQuestion("3", "où?", ("ä", "b"), 0),
    ]
    model = Rigged(lambda text: "A", max_seq_len=64)
    result = evaluate(model, question_set(questions=questions), FAST)
    assert result.cut == {"generate": 1, "likelihood": 1}
    assert (result.unknown_characters, result.with_unknown) == (2, 1)
    assert result.scores["first letter"].mean == 100


def test_a_module_is_evaluated_in_evaluation_mode_and_restored() -> None:
    class Module(nn.Module):
        device, substrate, max_seq_len = Rigged.device, CharacterSubstrate(), 512

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Dropout()
            self.rigged = always("A")
            self.new_cache = self.rigged.new_cache

        def forward(self, ids: Tensor, cache: Any = None, *, last_only: bool = False) -> Tensor:
            assert not self.training
            assert not self.inner.training
            return self.rigged(ids, cache, last_only=last_only)

        def loss(self, *arguments: Any, **options: Any) -> Tensor:
            assert not self.training
            return self.rigged.loss(*arguments, **options)

    model = Module()
    model.inner.eval()
    evaluate(model, question_set(), FAST)  # type: ignore[arg-type]
    assert model.training
    assert not model.inner.training


class Stopped(Exception):
    pass


def stop_after(answered: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= answered:
            raise Stopped

    return progress


def unsure() -> Rigged:
    return Rigged(lambda text: {"A": 0.4, "B": 0.3, " ": 0.3})


def test_an_interrupted_evaluation_is_resumed_to_the_same_result(tmp_path: Path) -> None:
    whole = evaluate(unsure(), question_set("arc-easy"), FAST)
    folder = tmp_path / "answers"
    with pytest.raises(Stopped):
        evaluate(
            unsure(), question_set("arc-easy"), FAST,
            folder=folder, model_key="m", on_progress=stop_after(12),
        )  # fmt: skip
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["chunk-00000.json", "chunk-00001.json", "request.json"]
    model = unsure()
    done: list[tuple[int, int]] = []
    again = evaluate(
        model, question_set("arc-easy"), FAST,
        folder=folder, model_key="m", on_progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert again == whole
    assert json.dumps(again.to_dict()) == json.dumps(whole.to_dict())
    assert done == [(6, 20), (12, 20), (18, 20), (20, 20)]
    fresh = unsure()
    evaluate(fresh, question_set("arc-easy"), FAST)
    assert 0 < model.tokens_read < fresh.tokens_read
    # A finished evaluation does not call the model.
    silent = unsure()
    assert evaluate(silent, question_set("arc-easy"), FAST, folder=folder, model_key="m") == whole
    assert silent.tokens_read == 0


def test_a_question_is_answered_alike_in_every_sample(tmp_path: Path) -> None:
    def answers(folder: Path, questions: tuple[ChoiceQuestion, ...]) -> dict[str, list[str]]:
        evaluate(unsure(), question_set("arc-easy", questions), FAST, folder=folder, model_key="m")
        chunks = [json.loads(file.read_text()) for file in sorted(folder.glob("chunk-*"))]
        return {record["id"]: record["answers"] for chunk in chunks for record in chunk}

    whole, some = answers(tmp_path / "a", QUESTIONS), answers(tmp_path / "b", QUESTIONS[3::2])
    assert some.items() <= whole.items()
    assert len({tuple(texts) for texts in whole.values()}) > 15


def test_another_evaluations_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "answers"

    def run(
        task: str = "arc-easy", settings: EvaluationSettings = FAST, key: str = "m", n: int = 8
    ) -> TaskResult:
        chosen = question_set(task, QUESTIONS[:n])
        return evaluate(always("A"), chosen, settings, folder=folder, model_key=key)

    run()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = dataclasses.replace
    for other, message in (
        ({"key": "other"}, "model is m, expected other"),
        ({"task": "csqa"}, "task is arc-easy, expected csqa"),
        ({"n": 7}, "questions is"),
        ({"settings": changed(FAST, seed=3)}, r"settings\.seed is 0, expected 3"),
        ({"settings": changed(FAST, runs=2)}, r"settings\.runs is 10, expected 2"),
        ({"settings": changed(FAST, protocols=("generate",))}, r"settings\.protocols is"),
    ):
        with pytest.raises(ConfigError, match=f"holds another evaluation \\({message}"):
            run(**other)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # Settings that affect only the scoring may change.
    run(settings=changed(FAST, resamples=9))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="contains other files"):
        evaluate(always("A"), question_set(), FAST, folder=foreign, model_key="m")
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["[]", "[1, 2]", "{", '[{"question": 3}]'])
def test_a_damaged_chunk_is_named(tmp_path: Path, content: str) -> None:
    evaluate(always("A"), question_set(), FAST, folder=tmp_path / "a", model_key="m")
    (tmp_path / "a" / "chunk-00001.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"chunk-00001\.json"):
        evaluate(always("A"), question_set(), FAST, folder=tmp_path / "a", model_key="m")


def test_a_model_that_is_no_module_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot identify a Rigged by its weights"):
        evaluate(always("A"), question_set(), FAST, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_settings_out_of_range() -> None:
    for wrong, message in (
        ({"runs": 0}, "runs: expected an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
        ({"temperature": -1.0}, "temperature: expected a finite number of at least 0, got -1"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"protocols": ()}, r"a list of length at least 1, got \[\]"),
        ({"protocols": ("guess",)}, "expected one of generate, likelihood, got 'guess'"),
    ):
        with pytest.raises(ConfigError, match=message):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]


def test_translations_without_sacrebleu_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    model = always("A")
    pairs = [Translation("1", "English", "Russian", "yes", "no")]
    with pytest.raises(ConfigError, match=r"pip install 'fastgrow\[eval\]'"):
        evaluate(model, question_set("opus-en-ru", pairs), FAST)
    assert model.tokens_read == 0


def test_translations_are_scored_by_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = [
        Translation("1", "English", "Russian", "The cat sat here today.", "the dog sat here today"),
        Translation("2", "English", "Russian", "No.", "never again will we do this"),
    ]

    def say(text: str) -> str:
        answered = text.split("Answer:")[1]
        said = " THE dog sat here TODAY" if "cat" in text else " no one"
        return said[len(answered)] if len(answered) < len(said) else "</s>"

    result = evaluate(Rigged(say), question_set("opus-en-ru", pairs), FAST)
    said = ["THE dog sat here TODAY", "no one"]
    references = [pair.reference for pair in pairs]
    # 22 characters are 22 tokens: because of the leading space, the last letter is cut.
    said[0] = said[0][: len(references[0]) - 1]
    each = [
        sacrebleu.corpus_bleu([s.upper()], [[r.upper()]]).score
        for s, r in zip(said, references, strict=True)
    ]
    scores = {name: score.mean for name, score in result.scores.items()}
    assert scores == pytest.approx(
        {
            "sentence BLEU, upper case": sum(each) / 2,
            "BLEU": sacrebleu.corpus_bleu(said, [references]).score,
            "chrF": sacrebleu.corpus_chrf(said, [references]).score,
        }
    )
    assert scores["sentence BLEU, upper case"] > 10
    assert result.papers == result.scores["sentence BLEU, upper case"]


def test_the_published_table() -> None:
    by_name = {row.model: row for row in PUBLISHED}
    assert len(by_name) == len(PUBLISHED) == 16
    assert by_name["abs-bvv-6"].scores["arc-challenge"] == 25.62
    assert [row.depth for row in PUBLISHED[:6]] == [1, 2, 3, 4, 5, 6]
    assert all(set(row.scores) <= set(TASKS) for row in PUBLISHED)

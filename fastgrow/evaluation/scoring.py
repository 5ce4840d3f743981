"""Scoring the answers of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fastgrow.evaluation import answer_rules
from fastgrow.evaluation.questions import (
    LETTERS,
    ChoiceQuestion,
    ReadingQuestion,
    Translation,
)
from fastgrow.evaluation.reading import QuestionSet
from fastgrow.evaluation.settings import EvaluationSettings
from fastgrow.evaluation.statistics import Score, of_set, over_questions, over_runs
from fastgrow.evaluation.translation_scores import corpus_bleu, corpus_chrf, papers_bleu

FIRST_LETTER = "first letter"
LIKELIHOOD = "likelihood"
LIKELIHOOD_PER_CHARACTER = "likelihood per character"
SUBSTRING = "substring"
EXACT_MATCH = "exact match"
F1 = "F1"
SENTENCE_BLEU = "sentence BLEU, upper case"
BLEU = "BLEU"
CHRF = "chrF"

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class TaskResult:
    """Scores of a model on a task.

    Attributes:
        task: name of the task.
        title: title of the task in tables.
        source: description of the source of the questions.
        questions: number of questions answered.
        available: number of questions in the source.
        note: why the scores are not comparable with the published ones; "" if they are.
        scores: scores by name, in per cent.
        chance: expected score of random guessing, in per cent; None for tasks without choices.
        keys: percentage of questions whose correct answer is A, B, …: the score of a model that
            always answers with that letter.
        no_letter: percentage of sampled answers that do not start with the letter of a choice; None
            without sampled answers.
        cut: number of questions whose prompt was cut on the left, by protocol.
        unknown_characters: number of characters of the prompts that are not in the substrate.
        with_unknown: number of questions with such characters.
        subjects: the papers' score by subject.
        settings: settings of the evaluation.
    """

    task: str
    title: str
    source: str
    questions: int
    available: int
    note: str
    scores: dict[str, Score]
    settings: EvaluationSettings
    chance: float | None = None
    keys: dict[str, float] = field(default_factory=dict)
    no_letter: float | None = None
    cut: dict[str, int] = field(default_factory=dict)
    unknown_characters: int = 0
    with_unknown: int = 0
    subjects: dict[str, float] = field(default_factory=dict)

    @property
    def papers(self) -> Score | None:
        """The score reported in the papers; None without the protocol `generate`."""
        for name in (FIRST_LETTER, SUBSTRING, SENTENCE_BLEU):
            if name in self.scores:
                return self.scores[name]
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def score(questions: QuestionSet, records: Records, settings: EvaluationSettings) -> TaskResult:
    """Compute the scores of a model's answers.

    Args:
        questions: the questions.
        records: one record per question, with `answers` (texts of the runs) and `log_likelihoods`
            (of the choices), either of which may be missing, and `cut`, `cut_likelihood` and
            `unknown`.
        settings: settings of the evaluation.
    """
    scores: dict[str, Score] = {}
    extra: dict[str, Any] = {}
    asked = questions.questions
    if questions.task.kind == "choice":
        choice = [question for question in asked if isinstance(question, ChoiceQuestion)]
        scores, extra = _score_choices(choice, records, settings)
    elif questions.task.kind == "reading":
        reading = [question for question in asked if isinstance(question, ReadingQuestion)]
        scores = _score_reading(reading, records, settings)
    else:
        pairs = [question for question in asked if isinstance(question, Translation)]
        scores = _score_translations(pairs, records, settings)
    return TaskResult(
        task=questions.task.name,
        title=questions.task.title,
        source=questions.source,
        questions=len(asked),
        available=questions.available,
        note=questions.note,
        scores=scores,
        settings=settings,
        cut=_cut(records),
        unknown_characters=sum(record["unknown"] for record in records),
        with_unknown=sum(record["unknown"] > 0 for record in records),
        **extra,
    )


def _score_choices(
    questions: Sequence[ChoiceQuestion], records: Records, settings: EvaluationSettings
) -> tuple[dict[str, Score], dict[str, Any]]:
    scores: dict[str, Score] = {}
    counts = Counter(question.key for question in questions)
    extra: dict[str, Any] = {
        "chance": 100 * float(np.mean([1 / len(question.choices) for question in questions])),
        "keys": {letter: 100 * counts[letter] / len(questions) for letter in sorted(counts)},
    }
    options = {"resamples": settings.resamples, "seed": settings.seed}
    if "answers" in records[0]:
        letters = _of_answers(records, questions, lambda text, _: answer_rules.first_letter(text))
        right = _right(letters, questions)
        scores[FIRST_LETTER] = over_runs(right, **options)
        offered = [
            [letter != "" and letter in LETTERS[: len(question.choices)] for letter in row]
            for row, question in zip(letters, questions, strict=True)
        ]
        extra["no_letter"] = 100 * (1 - float(np.mean(offered)))
        extra["subjects"] = _by_subject(questions, right)
    if "log_likelihoods" in records[0]:
        plain = [int(np.argmax(record["log_likelihoods"])) for record in records]
        normed = [
            int(np.argmax(np.divide(record["log_likelihoods"], _lengths(question))))
            for record, question in zip(records, questions, strict=True)
        ]
        for name, chosen in ((LIKELIHOOD, plain), (LIKELIHOOD_PER_CHARACTER, normed)):
            right = np.array(
                [100.0 * (i == q.answer) for i, q in zip(chosen, questions, strict=True)]
            )
            scores[name] = over_questions(right, **options)
    return scores, extra


def _lengths(question: ChoiceQuestion) -> list[int]:
    return [max(1, len(choice)) for choice in question.choices]


def _right(letters: list[list[str]], questions: Sequence[ChoiceQuestion]) -> np.ndarray:
    """Return 100 for a correct letter and 0 for others: [questions, runs]."""
    return np.array(
        [
            [100.0 * (letter == question.key) for letter in row]
            for row, question in zip(letters, questions, strict=True)
        ]
    )


def _by_subject(questions: Sequence[ChoiceQuestion], right: np.ndarray) -> dict[str, float]:
    subjects: dict[str, list[float]] = {}
    for question, values in zip(questions, right, strict=True):
        if question.subject is not None:
            subjects.setdefault(question.subject, []).append(float(values.mean()))
    return {name: float(np.mean(values)) for name, values in sorted(subjects.items())}


def _score_reading(
    questions: Sequence[ReadingQuestion], records: Records, settings: EvaluationSettings
) -> dict[str, Score]:
    rules: dict[str, Callable[[str, ReadingQuestion], float]] = {
        SUBSTRING: lambda text, q: answer_rules.contains_answer(text, q.answers[0]),
        EXACT_MATCH: lambda text, q: answer_rules.exact_match(text, q.answers),
        F1: lambda text, q: answer_rules.f1(text, q.answers),
    }
    return {
        name: over_runs(
            100.0 * np.array(_of_answers(records, questions, rule), dtype=float),
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, rule in rules.items()
    }


def _score_translations(
    pairs: Sequence[Translation], records: Records, settings: EvaluationSettings
) -> dict[str, Score]:
    sentences = np.array(
        _of_answers(records, pairs, lambda text, pair: papers_bleu(text, pair.reference))
    )
    references = [pair.reference for pair in pairs]
    by_run = [[text.strip() for text in run] for run in zip(*_answers(records), strict=True)]
    return {
        SENTENCE_BLEU: over_runs(sentences, resamples=settings.resamples, seed=settings.seed),
        BLEU: of_set(np.array([corpus_bleu(run, references) for run in by_run])),
        CHRF: of_set(np.array([corpus_chrf(run, references) for run in by_run])),
    }


def _answers(records: Records) -> list[list[str]]:
    return [record["answers"] for record in records]


def _of_answers(
    records: Records, questions: Sequence[Any], rule: Callable[[str, Any], Any]
) -> list[list[Any]]:
    """Return the rule's value for each question and run."""
    return [
        [rule(text, question) for text in texts]
        for texts, question in zip(_answers(records), questions, strict=True)
    ]


def _cut(records: Records) -> dict[str, int]:
    names = {"generate": "cut", "likelihood": "cut_likelihood"}
    return {
        protocol: sum(record[name] > 0 for record in records)
        for protocol, name in names.items()
        if name in records[0]
    }

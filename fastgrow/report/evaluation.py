"""The report of an evaluation: scores of models on tasks and texts, and published scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgrow import __version__, _files
from fastgrow.evaluation import PUBLISHED, Score, TaskResult
from fastgrow.report.evaluated import EvaluatedModel
from fastgrow.report.page import Report
from fastgrow.report.task_plots import (
    DepthScores,
    TaskScores,
    scores_against_depth,
    scores_with_published,
)

RESULTS, _SCORES, _DEPTH = "results.json", "scores.png", "depth.png"
# What `write_evaluation` writes.
FILES = (RESULTS, "report.md", "report.html", _SCORES, _DEPTH)


def write_evaluation(models: Sequence[EvaluatedModel], folder: Path) -> None:
    """Write `results.json`, `report.md`, `report.html` and the figures.

    Args:
        models: results of models that were evaluated on the same tasks and texts.
        folder: folder of the files.
    """
    report = Report("Evaluation")
    if models[0].tasks:
        _add_papers(report, models, folder)
        _add_likelihoods(report, models)
        _add_others(report, models)
        _add_conditions(report, models)
    if models[0].texts:
        _add_texts(report, models)
    report.write(folder)
    results = {"fastgrow": __version__, "models": [model.to_dict() for model in models]}
    _files.write_json(folder / RESULTS, results)


def task_rows(models: Sequence[EvaluatedModel]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of scores, a row for each model, task and score."""
    header = ["model", "task", "questions", "score", "%", "95 % over questions"]
    rows = [
        [model.name, task.title, f"{task.questions:,}", name, str(score), _interval(score)]
        for model in models
        for task in model.tasks
        for name, score in task.scores.items()
    ]
    return header, rows


def text_rows(models: Sequence[EvaluatedModel]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of bits per character, a row for each model and text."""
    header = ["text", "bits per character", "bits per token", "tokens", "characters", "unknown"]
    rows = [
        [
            text.name,
            f"{text.bits.bits_per_character:.4f}",
            f"{text.bits.bits_per_token:.4f}",
            f"{text.bits.tokens:,}",
            f"{text.bits.characters:,}",
            f"{text.unknown:,}",
        ]
        for model in models
        for text in model.texts
    ]
    if len(models) == 1:
        return header, rows
    names = [model.name for model in models for _ in model.texts]
    return ["model", *header], [[name, *row] for name, row in zip(names, rows, strict=True)]


def _add_papers(report: Report, models: Sequence[EvaluatedModel], folder: Path) -> None:
    tasks = [task for task in models[0].tasks if task.papers is not None]
    if not tasks:
        return
    settings = tasks[0].settings
    report.heading("The papers' protocol: sampled answers")
    report.paragraph(
        f"Mean of {settings.runs} sampled runs at temperature {settings.temperature:g}, "
        f"± 1.96 σ/√{settings.runs}. Multiple choice: correct if the first letter of the answer is "
        "the key. SQuAD: correct if the answer contains the right one. An answer that does not "
        "start with a letter is wrong, so scores below guessing are failures of the format. The "
        "interval covers only the sampling, not the choice of questions."
    )
    rows = [
        [model.name, *(str(score) for task in model.tasks if (score := task.papers))]
        for model in models
    ]
    rows.append(["guessing", *(_number(task.chance) for task in tasks)])
    for published in PUBLISHED:
        scores = [published.scores.get(task.task) for task in tasks]
        if any(score is not None for score in scores):
            rows.append([f"published: {published.model}", *map(_number, scores)])
    report.table(["%", *(task.title for task in tasks)], rows)
    notes = [f"{task.title}: {task.note}." for task in tasks if task.note]
    if notes:
        report.points(notes)
    compared = [_with_published(models, index) for index in range(len(tasks))]
    scores_with_published(compared, folder / _SCORES)
    report.figure(_SCORES, "Scores under the papers' protocol, compared with published scores")
    if sum(model.depth is not None for model in models) > 1:
        against = [_against_depth(models, index) for index in range(len(tasks))]
        scores_against_depth(against, folder / _DEPTH)
        report.figure(_DEPTH, "Scores under the papers' protocol against the number of blocks")


def _with_published(models: Sequence[EvaluatedModel], index: int) -> TaskScores:
    task = models[0].tasks[index]
    scores = {model.name: model.tasks[index].papers for model in models}
    return TaskScores(
        task.title,
        {name: (s.mean, s.ci or 0.0) for name, s in scores.items() if s is not None},
        [row.scores[task.task] for row in PUBLISHED if task.task in row.scores],
        task.chance,
    )


def _against_depth(models: Sequence[EvaluatedModel], index: int) -> DepthScores:
    task = models[0].tasks[index]
    own = [(model.depth, model.tasks[index].papers) for model in models]
    return DepthScores(
        task.title,
        [(depth, s.mean) for depth, s in own if depth is not None and s is not None],
        [
            (row.depth, row.scores[task.task])
            for row in PUBLISHED
            if row.depth is not None and task.task in row.scores
        ],
        task.chance,
    )


def _add_likelihoods(report: Report, models: Sequence[EvaluatedModel]) -> None:
    rows = [
        [model.name, task.title, *_with_interval(task, "likelihood", "likelihood per character")]
        for model in models
        for task in model.tasks
        if "likelihood" in task.scores
    ]
    if rows:
        report.heading("Multiple choice by likelihood")
        report.paragraph(
            "The choice with the highest likelihood after the question, by the probability of the "
            "whole text and per character. In brackets: 95 % interval over resampled questions."
        )
        report.table(["model", "task", "plain, %", "per character, %", "guessing, %"], rows)


def _with_interval(task: TaskResult, *names: str) -> list[str]:
    cells = [f"{task.scores[name]} ({_interval(task.scores[name])})" for name in names]
    return [*cells, _number(task.chance)]


def _add_others(report: Report, models: Sequence[EvaluatedModel]) -> None:
    rows = [
        [model.name, task.title, name, str(score), _interval(score)]
        for model in models
        for task in model.tasks
        if task.chance is None
        for name, score in task.scores.items()
    ]
    if rows:
        report.heading("Reading and translation")
        report.table(["model", "task", "score", "%", "95 % over questions"], rows)


def _add_conditions(report: Report, models: Sequence[EvaluatedModel]) -> None:
    report.heading("Questions")
    report.table(
        ["task", "questions", "of", "source", "right answers by letter, %"],
        [
            [
                task.title,
                f"{task.questions:,}",
                f"{task.available:,}",
                task.source,
                " ".join(f"{letter} {share:.1f}" for letter, share in task.keys.items()) or "–",
            ]
            for task in models[0].tasks
        ],
    )
    report.paragraph(
        "Prompts longer than the model's context were truncated on the left. Characters outside "
        "the vocabulary were replaced by <unk>."
    )
    report.table(
        [
            "model",
            "task",
            "prompts cut",
            "contexts cut (likelihood)",
            "unknown characters",
            "questions with any",
            "answers without a letter, %",
        ],
        [
            [
                model.name,
                task.title,
                _count(task.cut.get("generate")),
                _count(task.cut.get("likelihood")),
                f"{task.unknown_characters:,}",
                f"{task.with_unknown:,}",
                _number(task.no_letter),
            ]
            for model in models
            for task in model.tasks
        ],
    )


def _add_texts(report: Report, models: Sequence[EvaluatedModel]) -> None:
    report.heading("Bits per character")
    report.paragraph(
        "The loss is divided by the number of characters and not by the number of tokens, so that "
        "models with different vocabularies can be compared. Ends of documents are also predicted, "
        "but not counted as characters. The same holds for <unk>, which replaces unknown "
        "characters."
    )
    report.table(*text_rows(models))


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return "–"
    return f"{score.low:.2f} to {score.high:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"

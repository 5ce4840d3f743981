"""`fastgrow evaluate`: bits per character on texts, and scores on tasks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastgrow.cli.evaluation_inputs import (
    ANSWERS,
    is_model,
    named_models,
    read_tasks,
    refuse_another,
    refuse_loss,
    text_files,
)

if TYPE_CHECKING:
    from fastgrow.evaluation import EvaluationSettings, QuestionSet, TaskResult
    from fastgrow.report.evaluated import EvaluatedModel, EvaluatedText


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model, run or composed model.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[TEXT_OR_MODEL]...",
            help="Texts, one document a line, a folder standing for all its texts; and models to "
            "compare with the first.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks by name, with commas: mmlu, arc, csqa, openbookqa, squad, opus-en-ru, …; "
            "NAME=SOURCE reads one from a JSON-lines file or Hub dataset."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' files; else they come from the Hub.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for answers, results, report and plots.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask a random sample of so many questions a task.")
    ] = None,
    protocol: Annotated[
        Literal["both", "generate", "likelihood"],
        typer.Option(help="Sampled answers, as in the papers, or the choices' likelihoods."),
    ] = "both",
    runs: Annotated[int, typer.Option(help="Sampled answers to each question.")] = 10,
    temperature: Annotated[float, typer.Option(help="Of the sampling; 0 for none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of samples and of --limit.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Windows or prompts evaluated at once.")] = 16,
    document_start: Annotated[
        bool,
        typer.Option(help="Begin prompts with <s>, as documents in training; the papers don't."),
    ] = True,
    unknown: Annotated[
        Literal["error", "unk"],
        typer.Option(help="What a text's character outside the vocabulary is."),
    ] = "error",
) -> None:
    """Measure models: bits per character on texts, and scores on tasks."""
    from fastgrow.cli import resumable
    from fastgrow.errors import ConfigError
    from fastgrow.evaluation import EvaluationSettings
    from fastgrow.report.evaluation import write_evaluation

    paths = others or []
    models = named_models([model, *(path for path in paths if is_model(path))])
    texts = {path: text_files(path) for path in paths if not is_model(path)}
    if not texts and tasks is None:
        raise ConfigError("nothing to evaluate on: give texts, or tasks by --tasks")
    settings = EvaluationSettings(
        protocols=("generate", "likelihood") if protocol == "both" else (protocol,),
        runs=runs,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        document_start=document_start,
    )
    questions = read_tasks(tasks, data, limit, seed)
    if out is not None:
        files = [file for found in texts.values() for file in found]
        refuse_loss(out, list(models), [each.task.name for each in questions], files)
    # Without a folder nothing is kept to go on from.
    with resumable() if out is not None else contextlib.nullcontext():
        evaluated = [
            _evaluate_model(name, path, questions, settings, out, texts, batch_size, unknown)
            for name, path in models.items()
        ]
    _print(evaluated)
    if out is not None:
        write_evaluation(evaluated, out)
        typer.echo(f"\nreport: {out / 'report.html'}")


def _evaluate_model(
    name: str,
    path: Path,
    questions: list[QuestionSet],
    settings: EvaluationSettings,
    out: Path | None,
    texts: dict[Path, list[Path]],
    batch_size: int,
    unknown: str,
) -> EvaluatedModel:
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError
    from fastgrow.evaluation.identity import model_key
    from fastgrow.report.evaluated import EvaluatedModel

    loaded = load_model(path)
    if loaded.substrate is None:
        raise ConfigError(f"{path}: has no substrate, so it cannot read text")
    key = model_key(loaded)
    if out is not None:
        refuse_another(out, name, key)
    results = [
        _evaluate_task(loaded, each, settings, key, out and out / ANSWERS / name)
        for each in questions
    ]
    bits = _evaluate_texts(loaded, texts, batch_size, unknown)
    depth = getattr(loaded, "n_layer", None)
    return EvaluatedModel(name, str(path), key, depth, results, bits)


def _evaluate_task(
    model: Any,
    questions: QuestionSet,
    settings: EvaluationSettings,
    key: str,
    folder: Path | None,
) -> TaskResult:
    from fastgrow import _terminal
    from fastgrow.evaluation import evaluate

    task = questions.task
    place = None if folder is None else folder / task.name
    with _terminal.progress(task.title) as on_progress:
        return evaluate(
            model, questions, settings, folder=place, model_key=key, on_progress=on_progress
        )


def _evaluate_texts(
    model: Any, texts: dict[Path, list[Path]], batch_size: int, unknown: str
) -> list[EvaluatedText]:
    """Each text by itself, and all together where there are several."""
    import numpy as np

    from fastgrow.evaluation import bits_per_character
    from fastgrow.report.evaluated import EvaluatedText
    from fastgrow.training import TextData

    rows, sums = [], []
    for text, files in texts.items():
        parts = []
        for path in files:
            data = TextData(path, model.substrate, split=(1.0, 0.0, 0.0), unknown=unknown)
            bits = bits_per_character(model, data.train, batch_size=batch_size)
            lacking = int(np.count_nonzero(data.train.ids == model.substrate.unk_id))
            parts.append(EvaluatedText(str(path), bits, lacking))
        rows += parts
        if text.is_dir():
            sums.append(EvaluatedText.over_all(f"{text}, all", parts))
    if len(texts) > 1:
        sums.append(EvaluatedText.over_all("all", rows))
    return [*rows, *sums]


def _print(evaluated: list[EvaluatedModel]) -> None:
    from fastgrow import _terminal
    from fastgrow.report.evaluation import task_rows, text_rows

    if evaluated[0].tasks:
        _terminal.show(_terminal.table(*task_rows(evaluated)))
        for task in evaluated[0].tasks:
            if task.note:
                typer.echo(f"{task.title}: {task.note}")
    if evaluated[0].texts:
        _terminal.show(_terminal.table(*text_rows(evaluated)))

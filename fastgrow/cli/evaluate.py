"""`fastgrow evaluate`: measure bits per character on texts, and scores on tasks."""

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
    reject_another,
    reject_overwriting,
    text_files,
)

if TYPE_CHECKING:
    from fastgrow.evaluation import EvaluationSettings, QuestionSet, TaskResult
    from fastgrow.report.evaluated import EvaluatedModel, EvaluatedText


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model, of a run or of an ensemble.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[TEXT_OR_MODEL]...",
            help="Text files with one document per line, or folders of such files; and folders of "
            "further models to compare with the first.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Names of tasks, separated by commas: mmlu, arc, csqa, openbookqa, squad, "
            "opus-en-ru, …; NAME=SOURCE reads a task's questions from a JSON Lines file or Hub "
            "dataset."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the tasks' files; without it, they are loaded from the Hugging Face "
            "Hub."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for answers, results, report and plots; without it, results are only "
            "printed."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Use a random sample of at most this many questions of each task."),
    ] = None,
    protocol: Annotated[
        Literal["both", "generate", "likelihood"],
        typer.Option(
            help="generate: sample answers, as in the papers; likelihood: compare the likelihoods "
            "of a question's choices."
        ),
    ] = "both",
    runs: Annotated[int, typer.Option(help="Number of sampled answers to each question.")] = 10,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 decodes greedily.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling and of --limit.")] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Number of sequences or prompts evaluated at once.")
    ] = 16,
    document_start: Annotated[
        bool,
        typer.Option(
            help="Begin each prompt with the token `<s>`, as every training document does; the "
            "papers do not."
        ),
    ] = True,
    unknown: Annotated[
        Literal["error", "unk"],
        typer.Option(
            help="For a character outside the vocabulary in a text: report an error, or replace it "
            "by the token `<unk>`."
        ),
    ] = "error",
) -> None:
    """Measure bits per character on texts, and scores on tasks.

    Several models are compared. Give text files, tasks, or both.
    """
    from fastgrow.cli import resumable
    from fastgrow.errors import ConfigError
    from fastgrow.evaluation import EvaluationSettings
    from fastgrow.report.evaluation import write_evaluation

    paths = others or []
    if model.is_file():
        raise ConfigError(
            f"{model}: expected the folder of a model as the first argument, found a file"
        )
    models = named_models([model, *(path for path in paths if is_model(path))])
    texts = {path: text_files(path) for path in paths if not is_model(path)}
    if not texts and tasks is None:
        raise ConfigError("nothing to evaluate on: give text files, or tasks by --tasks")
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
        reject_overwriting(out, list(models), [each.task.name for each in questions], files)
    # Without a folder, nothing is saved that a second call could resume from.
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
        reject_another(out, name, key)
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
    """Evaluate each text, and add a row for all of them if there are several."""
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
            n_unknown = int(np.count_nonzero(data.train.ids == model.substrate.unk_id))
            parts.append(EvaluatedText(str(path), bits, n_unknown))
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

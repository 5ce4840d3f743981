"""`fastgrow evaluate`: bits per character on texts, and scores on tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from fastgrow.evaluation import EvaluationSettings, QuestionSet, TaskResult
    from fastgrow.report.evaluation import EvaluatedModel


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
    models = _named([model, *(path for path in paths if _is_model(path))])
    texts = [path for path in paths if not _is_model(path)]
    if not texts and tasks is None:
        raise ConfigError("nothing to evaluate on: give texts, or tasks by --tasks")
    settings = EvaluationSettings(
        protocols=("generate", "likelihood") if protocol == "both" else (protocol,),
        runs=runs,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    questions = _read_tasks(tasks, data, limit, seed)
    if out is not None:
        _refuse_loss(out, list(models), [each.task.name for each in questions], texts)
    with resumable():
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
    texts: list[Path],
    batch_size: int,
    unknown: str,
) -> EvaluatedModel:
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError
    from fastgrow.evaluation.identity import model_key
    from fastgrow.report.evaluation import EvaluatedModel

    loaded = load_model(path)
    if loaded.substrate is None:
        raise ConfigError(f"{path}: has no substrate, so it cannot read text")
    key = model_key(loaded)
    results = [
        _evaluate_task(loaded, each, settings, key, out and out / "answers" / name)
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
    from dataclasses import replace

    from fastgrow.evaluation import evaluate

    task = questions.task
    if task.kind != "choice":
        settings = replace(settings, protocols=("generate",))
    # Carriage returns are for a screen; a log keeps the results alone.
    show = typer.get_text_stream("stderr").isatty()

    def progress(done: int, total: int) -> None:
        if show:
            typer.echo(f"\r{task.title}: {done:,} of {total:,}", nl=done == total, err=True)

    place = None if folder is None else folder / task.name
    return evaluate(model, questions, settings, folder=place, model_key=key, on_progress=progress)


def _evaluate_texts(model: Any, texts: list[Path], batch_size: int, unknown: str) -> list[Any]:
    """(name, bits) of each text, and of all together where there are several."""
    from fastgrow.evaluation import BitsPerCharacter, bits_per_character
    from fastgrow.training import TextData

    rows = []
    for path in (file for text in texts for file in _files_of(text)):
        data = TextData(path, model.substrate, split=(1.0, 0.0, 0.0), unknown=unknown)
        rows.append((str(path), bits_per_character(model, data.train, batch_size=batch_size)))
    alone = list(rows)
    for folder in (text for text in texts if text.is_dir()):
        parts = [bits for name, bits in alone if folder in Path(name).parents]
        rows.append((f"{folder}, all", BitsPerCharacter.over_all(parts)))
    if len(texts) > 1:
        rows.append(("all", BitsPerCharacter.over_all(bits for _, bits in alone)))
    return rows


def _files_of(text: Path) -> list[Path]:
    """A text, or the texts in a folder: each is a source of its own."""
    from fastgrow.errors import DataError
    from fastgrow.training.data.documents import SUFFIXES

    if not text.is_dir():
        return [text]
    files = sorted(
        file
        for file in text.rglob("*")
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise DataError(f"{text}: the folder holds no file of {', '.join(SUFFIXES)}")
    return files


def _read_tasks(
    tasks: str | None, data: Path | None, limit: int | None, seed: int
) -> list[QuestionSet]:
    from fastgrow.errors import ConfigError, DataError
    from fastgrow.evaluation import find_tasks, read_questions

    if data is not None and not data.is_dir():
        raise DataError(f"{data}: no such folder; the tasks' files were expected there")
    sources: dict[str, tuple[Any, Any]] = {}
    for item in (tasks or "").split(","):
        name, _, given = item.strip().partition("=")
        if not name:
            continue
        for task in find_tasks(name):
            sources[task.name] = (task, given or data)
    if tasks is not None and not sources:
        raise ConfigError("--tasks names no task")
    return [
        read_questions(task, source, limit=limit, seed=seed) for task, source in sources.values()
    ]


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()


def _named(paths: list[Path]) -> dict[str, Path]:
    """Models by a name that is short and different from the others'."""
    from fastgrow.errors import ConfigError

    names: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        folder = whole.parent if whole.name == "model" else whole
        name = folder.name
        if name in names:
            name = f"{folder.parent.name}-{name}"
        if name in names:
            raise ConfigError(f"{path}: is given twice, or is called as {names[name]} is")
        names[name] = path
    return names


def _refuse_loss(out: Path, models: list[str], tasks: list[str], texts: list[Path]) -> None:
    """Refuse a folder whose results would be lost; what a stopped evaluation left is welcome."""
    from fastgrow import _files
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import RESULTS

    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; a folder was to be written there")
    foreign = sorted(
        {entry.name for entry in out.iterdir()}
        - {"answers", RESULTS, "report.md", "report.html", "scores.png", "depth.png"}
    )
    if foreign:
        raise ConfigError(f"{out}: holds {foreign[0]!r}; an evaluation needs a folder of its own")
    if not (out / RESULTS).exists():
        return
    found = _files.read_json(out / RESULTS)
    wanted = json.dumps([models, tasks, bool(texts)])
    there = [
        [model["name"] for model in found["models"]],
        [task["task"] for task in found["models"][0]["tasks"]],
        bool(found["models"][0]["texts"]),
    ]
    if json.dumps(there) != wanted:
        raise ConfigError(
            f"{out}: holds the results of other models or tasks "
            f"({', '.join([*there[0], *there[1]])}); choose another folder"
        )


def _print(evaluated: list[EvaluatedModel]) -> None:
    from fastgrow.report import table_text
    from fastgrow.report.evaluation import task_rows, text_rows

    if evaluated[0].tasks:
        typer.echo(table_text(*task_rows(evaluated)))
        for task in evaluated[0].tasks:
            if task.note:
                typer.echo(f"{task.title}: {task.note}")
    if evaluated[0].texts:
        typer.echo(table_text(*text_rows(evaluated)))

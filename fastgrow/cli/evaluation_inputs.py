"""The arguments of `fastgrow evaluate`: models, texts, tasks, and a folder to write to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgrow.evaluation import QuestionSet

# Name of the subfolder of an evaluation's folder in which the answers are saved.
ANSWERS = "answers"


def is_model(path: Path) -> bool:
    """Whether `path` is the folder of a model or of a run."""
    return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()


def named_models(paths: list[Path]) -> dict[str, Path]:
    """Return the models by short, unique names, derived from the names of their folders.

    Raises:
        ConfigError: a model is given twice, or the folders' names are not enough to give two
            models different names.
    """
    from fastgrow.errors import ConfigError

    names: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        folder = whole.parent if whole.name == "model" else whole
        name = folder.name if folder.name not in names else f"{folder.parent.name}-{folder.name}"
        given = [other for other in names.values() if other.resolve() in (whole, folder)]
        if given:
            raise ConfigError(f"{path}: the model is given twice")
        if name in names:
            raise ConfigError(
                f"{path}: has the same folder name as {names[name]}; rename one of the folders"
            )
        names[name] = path
    return names


def text_files(text: Path) -> list[Path]:
    """Return the text file, or the text files in a folder; each is evaluated separately.

    Raises:
        DataError: there is no such file or folder, or the folder has no texts.
    """
    from fastgrow.errors import DataError
    from fastgrow.training.data.documents import SUFFIXES

    if not text.exists():
        raise DataError(f"{text}: no such file or folder")
    if not text.is_dir():
        return [text]
    files = sorted(
        file
        for file in text.rglob("*")
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise DataError(f"{text}: the folder holds no file that ends in {', '.join(SUFFIXES)}")
    return files


def read_tasks(
    tasks: str | None, data: Path | None, limit: int | None, seed: int
) -> list[QuestionSet]:
    """Read the questions of the tasks in a list such as "mmlu,arc=own.jsonl".

    Raises:
        ConfigError: there is no such task, no task is named, or a task requires a library that is
            not installed.
        DataError: a file is missing or its content is not as expected.
    """
    from fastgrow.errors import ConfigError, DataError
    from fastgrow.evaluation import find_tasks, read_questions
    from fastgrow.evaluation.translation_scores import require_sacrebleu

    if data is not None and not data.is_dir():
        raise DataError(f"--data {data}: no such folder; expected a folder with the tasks' files")
    sources: dict[str, tuple[Any, Any]] = {}
    for item in (tasks or "").split(","):
        name, _, given = item.strip().partition("=")
        if not name:
            continue
        for task in find_tasks(name):
            sources[task.name] = (task, given or data)
    if tasks is not None and not sources:
        raise ConfigError("--tasks: expected at least one task name, got none")
    if any(task.kind == "translation" for task, _ in sources.values()):
        require_sacrebleu()
    return [
        read_questions(task, source, limit=limit, seed=seed) for task, source in sources.values()
    ]


def reject_overwriting(out: Path, models: list[str], tasks: list[str], texts: list[Path]) -> None:
    """Reject an output folder whose results would be overwritten.

    The folder of a stopped evaluation is accepted: the evaluation resumes there.

    Raises:
        ConfigError: the folder holds results of other models, tasks or texts, or other files.
    """
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import FILES, RESULTS

    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder, or a path that is free")
    foreign = sorted({entry.name for entry in out.iterdir()} - {ANSWERS, *FILES})
    if foreign:
        raise ConfigError(
            f"--out {out}: holds {foreign[0]!r}, which is not part of an evaluation; choose a new "
            "folder"
        )
    if not (out / RESULTS).exists():
        return
    requested = {*models, *tasks, *map(str, texts)}
    found = [name for model in _results(out) for name in _contents(model)]
    if not set(found) <= requested:
        raise ConfigError(
            f"--out {out}: holds the results of other models, tasks or texts "
            f"({', '.join(dict.fromkeys(found))}); choose another folder"
        )


def reject_another(out: Path, name: str, key: str) -> None:
    """Reject an output folder with the results of another model of the same name.

    Args:
        out: the output folder.
        name: name of the model.
        key: the model's key, which is different for different models.

    Raises:
        ConfigError: the folder holds such results.
    """
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import RESULTS

    if not (out / RESULTS).exists():
        return
    if any(model["name"] == name and model["key"] != key for model in _results(out)):
        raise ConfigError(
            f"--out {out}: holds the results of another model that is also named {name}; "
            "choose another folder"
        )


def _results(out: Path) -> list[dict[str, Any]]:
    from fastgrow import _files
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import RESULTS

    found = _files.read_json(out / RESULTS)
    if not isinstance(found, dict) or "fastgrow" not in found:
        raise ConfigError(
            f"--out: {out / RESULTS} is not the result of an evaluation; choose another folder"
        )
    return found["models"]


def _contents(model: dict[str, Any]) -> list[str]:
    """Return the names of a model and of the tasks and texts it was evaluated on."""
    tasks = [task["task"] for task in model["tasks"]]
    return [model["name"], *tasks, *(text["text"] for text in model["texts"] if text["source"])]

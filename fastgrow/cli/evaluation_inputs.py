"""What `fastgrow evaluate` is given: models, texts, tasks, and a folder to write to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgrow.evaluation import QuestionSet

# The folder, inside that of an evaluation, in which the answers are kept.
ANSWERS = "answers"


def is_model(path: Path) -> bool:
    """Whether it is the folder of a model or of a run."""
    return (path / "config.json").is_file() or (path / "model" / "config.json").is_file()


def named_models(paths: list[Path]) -> dict[str, Path]:
    """Models by a name that is short and different from the others'.

    Raises:
        ConfigError: a model is given twice, or two cannot be told apart by the names of their
            folders.
    """
    from fastgrow.errors import ConfigError

    names: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        folder = whole.parent if whole.name == "model" else whole
        name = folder.name if folder.name not in names else f"{folder.parent.name}-{folder.name}"
        given = [other for other in names.values() if other.resolve() in (whole, folder)]
        if given:
            raise ConfigError(f"{path}: is given twice")
        if name in names:
            raise ConfigError(f"{path}: its folder is called as that of {names[name]}")
        names[name] = path
    return names


def text_files(text: Path) -> list[Path]:
    """A text, or the texts in a folder: each is a source of its own.

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
        raise DataError(f"{text}: the folder holds no file of {', '.join(SUFFIXES)}")
    return files


def read_tasks(
    tasks: str | None, data: Path | None, limit: int | None, seed: int
) -> list[QuestionSet]:
    """The questions of the tasks in a list such as "mmlu,arc=own.jsonl".

    Raises:
        ConfigError: there is no such task, no task is named, or one needs a library that is not
            installed.
        DataError: a file is missing or holds something else.
    """
    from fastgrow.errors import ConfigError, DataError
    from fastgrow.evaluation import find_tasks, read_questions
    from fastgrow.evaluation.translation_scores import require_sacrebleu

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
    if any(task.kind == "translation" for task, _ in sources.values()):
        require_sacrebleu()
    return [
        read_questions(task, source, limit=limit, seed=seed) for task, source in sources.values()
    ]


def refuse_loss(out: Path, models: list[str], tasks: list[str], texts: list[Path]) -> None:
    """Refuse a folder whose results would be lost; what a stopped evaluation left is welcome.

    Raises:
        ConfigError: it holds results of other models, tasks or texts, or something else.
    """
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import FILES, RESULTS

    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; a folder was to be written there")
    foreign = sorted({entry.name for entry in out.iterdir()} - {ANSWERS, *FILES})
    if foreign:
        raise ConfigError(f"{out}: holds {foreign[0]!r}; an evaluation needs a folder of its own")
    if not (out / RESULTS).exists():
        return
    asked = {*models, *tasks, *map(str, texts)}
    there = [name for model in _results(out) for name in _contents(model)]
    if not set(there) <= asked:
        raise ConfigError(
            f"{out}: holds the results of other models, tasks or texts "
            f"({', '.join(dict.fromkeys(there))}); choose another folder"
        )


def refuse_another(out: Path, name: str, key: str) -> None:
    """Refuse a folder with results of another model of this name.

    Raises:
        ConfigError: it has them; `key` tells models apart.
    """
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import RESULTS

    if not (out / RESULTS).exists():
        return
    if any(model["name"] == name and model["key"] != key for model in _results(out)):
        raise ConfigError(
            f"{out}: holds the results of another model that was called {name} too; "
            "choose another folder"
        )


def _results(out: Path) -> list[dict[str, Any]]:
    from fastgrow import _files
    from fastgrow.errors import ConfigError
    from fastgrow.report.evaluation import RESULTS

    found = _files.read_json(out / RESULTS)
    if not isinstance(found, dict) or "fastgrow" not in found:
        raise ConfigError(f"{out / RESULTS}: is not an evaluation's; choose another folder")
    return found["models"]


def _contents(model: dict[str, Any]) -> list[str]:
    """The names of a model and of what it was evaluated on."""
    tasks = [task["task"] for task in model["tasks"]]
    return [model["name"], *tasks, *(text["text"] for text in model["texts"] if text["source"])]

"""What kinds of folders there are, how each is told, and what its page has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastgrow.compose import Ensemble
from fastgrow.nn.serialization import CONFIG, WEIGHTS
from fastgrow.report.inside.facts import add_facts
from fastgrow.report.inside.growth import add_growth
from fastgrow.report.inside.models import add_experts, add_model, excerpts_for, open_model
from fastgrow.report.inside.records import GROWTH, METRICS, SETTINGS, read_optional, read_records
from fastgrow.report.inside.runs import (
    DEMO,
    add_findings,
    add_matrix,
    add_recorded_samples,
    add_runs,
    read_demo,
    run_folders,
)
from fastgrow.report.inside.wishes import Wishes
from fastgrow.report.page import Report


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that a page can be made of.

    Attributes:
        name: in words, with an article.
        recognises: whether a folder is one, by its files' names; damaged ones are, too.
        add: adds the sections to a report. What is missing is a note in it, not an error.
        page: where the page goes if the user names no place.
    """

    name: str
    recognises: Callable[[Path], bool]
    add: Callable[[Report, Path, Wishes], None]
    page: Callable[[Path], Path]


def _is_runs(folder: Path) -> bool:
    return (folder / DEMO).is_file() or bool(run_folders(folder))


def _is_growth(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SETTINGS, GROWTH, METRICS))


def _is_model(folder: Path) -> bool:
    content, _ = read_optional(folder / CONFIG)
    if isinstance(content, dict):
        return {"kind", "format", "config"} <= content.keys()
    # A damaged one counts where its neighbours are those of a saved model.
    saved = ("experts", WEIGHTS, "tokenizer.json")
    return (folder / CONFIG).exists() and any((folder / name).exists() for name in saved)


def _add_runs(report: Report, folder: Path, wishes: Wishes) -> None:
    record = read_demo(report, folder)
    add_findings(report, record)
    runs = add_runs(report, run_folders(folder))
    add_matrix(report, record)
    add_recorded_samples(report, record)
    model = open_model(report, folder / "composed", wishes)
    if model is not None:
        texts = excerpts_for(model, wishes, {run.folder: run.settings for run in runs})
        add_model(report, model, texts, wishes, together=False)
    settings = record.get("settings")
    facts = settings if isinstance(settings, dict) else {}
    add_facts(report, {**facts, **{k: record[k] for k in ("seconds",) if k in record}}, [])


def _add_growth(report: Report, folder: Path, wishes: Wishes) -> None:
    records = read_records(folder)
    for sentence in records.missing:
        report.note(sentence)
    add_growth(report, records)
    model = open_model(report, folder / "model", wishes)
    if model is not None:
        texts = excerpts_for(model, wishes, {folder: records.settings})
        add_model(report, model, texts, wishes)
    add_facts(report, records.settings, records.rows)


def _add_model(report: Report, folder: Path, wishes: Wishes) -> None:
    model = open_model(report, folder, wishes)
    if isinstance(model, Ensemble):
        add_experts(report, model)
    if model is not None:
        add_model(report, model, excerpts_for(model, wishes, {}), wishes)
    content, _ = read_optional(folder / CONFIG)
    facts = content if isinstance(content, dict) else {}
    add_facts(report, {name: value for name, value in facts.items() if name != "sha256"}, [])


# In the order in which they are tried. A later kind, such as a study's, is given to `write_page`.
FOLDERS: tuple[FolderKind, ...] = (
    # A demo's folder has a report of its own, which stays.
    FolderKind("a folder of runs", _is_runs, _add_runs, lambda f: f / "page.html"),
    FolderKind("a growth run", _is_growth, _add_growth, lambda f: f / "report.html"),
    # Beside the folder: a saved model is replaced only where nothing of others is in it.
    FolderKind("a model", _is_model, _add_model, lambda f: f.with_name(f"{f.name}-report.html")),
)

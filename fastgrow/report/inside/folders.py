"""The kinds of folders, how each is recognised, and the sections of its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastgrow.compose import Ensemble
from fastgrow.nn.serialization import CONFIG, WEIGHTS
from fastgrow.report.inside.facts import add_facts
from fastgrow.report.inside.growth import add_growth
from fastgrow.report.inside.models import add_experts, add_model, excerpts_for, open_model
from fastgrow.report.inside.options import PageOptions
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
from fastgrow.report.page import Report


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder for which a page can be written.

    Attributes:
        name: name of the kind with an article, such as "a model".
        recognises: function that returns whether a folder is of this kind, by the names of its
            files. It also accepts damaged folders.
        add: function that adds the sections to a report. It reports missing files by notes in the
            report and not by errors.
        page: function that returns the default path of the page.
    """

    name: str
    recognises: Callable[[Path], bool]
    add: Callable[[Report, Path, PageOptions], None]
    page: Callable[[Path], Path]


def _is_runs(folder: Path) -> bool:
    return (folder / DEMO).is_file() or bool(run_folders(folder))


def _is_growth(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SETTINGS, GROWTH, METRICS))


def _is_model(folder: Path) -> bool:
    content, _ = read_optional(folder / CONFIG)
    if isinstance(content, dict):
        return {"kind", "format", "config"} <= content.keys()
    # A damaged config.json counts if the other files are those of a saved model.
    saved = ("experts", WEIGHTS, "tokenizer.json")
    return (folder / CONFIG).exists() and any((folder / name).exists() for name in saved)


def _add_runs(report: Report, folder: Path, options: PageOptions) -> None:
    record = read_demo(report, folder)
    add_findings(report, record)
    runs = add_runs(report, run_folders(folder))
    add_matrix(report, record)
    add_recorded_samples(report, record)
    model = open_model(report, folder / "composed", options)
    if model is not None:
        texts = excerpts_for(model, options, {run.folder: run.settings for run in runs})
        add_model(report, model, texts, options, together=False)
    settings = record.get("settings")
    facts = settings if isinstance(settings, dict) else {}
    add_facts(report, {**facts, **{k: record[k] for k in ("seconds",) if k in record}}, [])


def _add_growth(report: Report, folder: Path, options: PageOptions) -> None:
    records = read_records(folder)
    for sentence in records.missing:
        report.note(sentence)
    add_growth(report, records)
    model = open_model(report, folder / "model", options)
    if model is not None:
        texts = excerpts_for(model, options, {folder: records.settings})
        add_model(report, model, texts, options)
    add_facts(report, records.settings, records.rows)


def _add_model(report: Report, folder: Path, options: PageOptions) -> None:
    model = open_model(report, folder, options)
    if isinstance(model, Ensemble):
        add_experts(report, model)
    if model is not None:
        add_model(report, model, excerpts_for(model, options, {}), options)
    content, _ = read_optional(folder / CONFIG)
    facts = content if isinstance(content, dict) else {}
    add_facts(report, {name: value for name, value in facts.items() if name != "sha256"}, [])


# In the order in which they are tried. Further kinds can be passed to `write_page`.
FOLDERS: tuple[FolderKind, ...] = (
    # The demo itself writes report.html.
    FolderKind("a folder of runs", _is_runs, _add_runs, lambda f: f / "page.html"),
    FolderKind("a growth run", _is_growth, _add_growth, lambda f: f / "report.html"),
    # Next to the folder: a model can be saved again only to a folder without other files.
    FolderKind("a model", _is_model, _add_model, lambda f: f.with_name(f"{f.name}-report.html")),
)

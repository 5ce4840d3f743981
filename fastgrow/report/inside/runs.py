"""A folder of several runs, such as a demo: curves, expert matrix and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastgrow.report.chart import Line, LineChart
from fastgrow.report.inside.growth import validation_curve
from fastgrow.report.inside.records import (
    Record,
    RunRecords,
    format_value,
    number,
    read_optional,
    read_records,
)
from fastgrow.report.page import Report
from fastgrow.report.parts import Row, Table
from fastgrow.training.log import format_count

DEMO = "demo.json"


def run_folders(folder: Path) -> list[Path]:
    """Return the subfolders that contain a growth run."""
    return sorted(path.parent for path in folder.glob("*/run.json"))


def read_demo(report: Report, folder: Path) -> Record:
    """Return the demo's record. If it is missing or damaged, add a note and return {}."""
    record, problem = read_optional(folder / DEMO)
    if isinstance(record, dict):
        return record
    reason = problem or f"{DEMO} is not a JSON object."
    report.note(f"The demo has not finished, or its record was lost. {reason}")
    return {}


def add_findings(report: Report, record: Record) -> None:
    """Add the findings that the demo recorded."""
    findings = record.get("findings")
    if isinstance(findings, list) and findings:
        report.heading("Findings")
        report.points([str(sentence) for sentence in findings])


def add_runs(report: Report, folders: Sequence[Path]) -> list[RunRecords]:
    """Add a chart for each family (folder name up to the first "-") and a table of all runs."""
    report.heading("Growth")
    runs = [read_records(folder) for folder in folders]
    if not runs:
        report.note("There are no run folders.")
        return runs
    families: dict[str, list[RunRecords]] = {}
    for run in runs:
        families.setdefault(run.folder.name.partition("-")[0], []).append(run)
    charts = [chart for name, of in families.items() if (chart := _family(name, of)) is not None]
    if charts:
        report.add(Row(charts))
    else:
        report.note("There are no metrics to plot.")
    report.heading("Runs", level=3)
    report.add(_runs_table(runs))
    report.paragraph("`fastgrow report` on one of these folders shows the details of that run.")
    for run in runs:
        for sentence in run.missing:
            report.note(f"{run.folder.name}: {sentence}")
    return runs


def add_matrix(report: Report, record: Record) -> None:
    """Add the expert matrix: bits per character by model and text."""
    report.heading("Expert matrix")
    matrix = record.get("matrix")
    columns, rows = _matrix_of(matrix if isinstance(matrix, Mapping) else {})
    if not rows:
        report.note("No expert matrix is recorded.")
        return
    shades = [_shades([row[i] for row in rows.values()]) for i in range(len(columns))]
    cells = [[name, *(f"{value:.3f}" for value in values)] for name, values in rows.items()]
    report.add(Table(["", *columns], cells, [list(row) for row in zip(*shades, strict=True)]))
    report.paragraph(
        "Bits per character of each test text. Lower is better and has a darker shade. Each column "
        "has a separate scale, because the texts differ in difficulty."
    )


def add_recorded_samples(report: Report, record: Record) -> None:
    """Add the samples that the demo recorded."""
    samples = record.get("samples")
    if not isinstance(samples, Mapping) or not samples:
        return
    report.heading("Samples of the run")
    for by_model in samples.values():
        for name, text in by_model.items() if isinstance(by_model, Mapping) else ():
            report.sample(str(text), label=str(name))


def _family(name: str, runs: Sequence[RunRecords]) -> LineChart | None:
    curves = [(run, *validation_curve(run)) for run in runs]
    lines = [
        Line(run.folder.name.partition("-")[2].replace("-", " ") or run.folder.name, points)
        for run, points, _ in curves
        if points
    ]
    if not lines:
        return None
    boundaries = sorted({place for _, _, places in curves for place in places})
    axis = "tokens" if all(run.tokens_per_step for run in runs) else "steps"
    return LineChart(
        name, lines, axis, "validation, bits per character",
        "Dashed lines mark the ends of stages." if boundaries else "", boundaries,
    )  # fmt: skip


def _runs_table(runs: Sequence[RunRecords]) -> Table:
    texts = dict.fromkeys(
        name
        for run in runs
        for stage in run.stages
        if isinstance(stage.get("bits"), dict)
        for name in stage["bits"]
    )
    header = ["run", "stages", "depth", "active", "total", "tokens", "seconds"]
    header += [f"{name}, bits/char" for name in texts]
    rows = []
    for run in runs:
        last = run.stages[-1] if run.stages else {}
        rows.append([run.folder.name, str(len(run.stages)), format_value(last.get("depth"))])
        for name in ("active_parameters", "total_parameters"):
            value = number(last, name)
            rows[-1].append("–" if value is None else format_count(value))
        for name, form in (("tokens", "{:,.0f}"), ("seconds", "{:,.1f}")):
            values = [number(stage, name) or 0 for stage in run.stages]
            rows[-1].append(form.format(sum(values)) if values else "–")
        for name in texts:
            bits = number(last, "bits", name)
            rows[-1].append("–" if bits is None else f"{bits:.3f}")
    return Table(header, rows)


def _matrix_of(matrix: Mapping[str, Any]) -> tuple[list[str], dict[str, list[float]]]:
    """Return the columns and all complete rows."""
    columns, rows = matrix.get("columns"), matrix.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, Mapping):
        return [], {}
    whole = {
        str(name): [float(v) for v in values]
        for name, values in rows.items()
        if isinstance(values, list)
        and len(values) == len(columns)
        and all(isinstance(value, int | float) for value in values)
    }
    return [str(column) for column in columns], whole


def _shades(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(high - value) / (high - low) if high > low else 0.0 for value in values]

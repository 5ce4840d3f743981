"""The section about growth: curves with boundaries, losses by stage, speed and parameters."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.report.chart import Bar, BarChart, Line, LineChart, Point
from fastgrow.report.inside.records import Record, RunRecords, flatten, format_value, number
from fastgrow.report.page import Report
from fastgrow.report.parts import Part, Row, Table, Tiles
from fastgrow.training.log import format_count, format_seconds

VALIDATION = "validation_bits_per_character"

_LONGEST_CELL = 24


def add_growth(report: Report, records: RunRecords) -> None:
    """Add the section about the growth of a run."""
    report.heading("Growth")
    if not records.stages and not records.rows:
        report.note("No stage is recorded.")
        return
    tiles = _tiles(records)
    if tiles:
        report.add(Tiles(tiles))
    charts = growth_charts(records)
    if charts:
        report.add(Row(charts))
    if not any(isinstance(chart, LineChart) for chart in charts):
        report.note("There are no metrics to plot.")
    if records.stages:
        report.heading("Stages", level=3)
        report.add(stage_table(records))
        remarks = _remarks(records.stages)
        if remarks:
            report.points(remarks)
    _add_drift(report, records.stages)


def validation_curve(records: RunRecords) -> tuple[list[Point], list[float]]:
    """Return validation bits per character against tokens of the run, and the ends of stages.

    Each stage but the first starts with the value right after its blocks were inserted, if it was
    recorded. If the number of tokens per step is unknown, the x axis counts steps.
    """
    scale = records.tokens_per_step or 1.0
    points: list[Point] = []
    boundaries: list[float] = []
    end = 0.0
    for index, rows in enumerate(records.by_stage()):
        if index:
            boundaries.append(end)
            at_start = number(_stage(records, index), "bits_at_start")
            if at_start is not None:
                points.append((end, at_start))
        for row in rows:
            step, bits = number(row, "global_step"), number(row, VALIDATION)
            end = max(end, (step or 0.0) * scale)
            if step is not None and bits is not None:
                points.append((step * scale, bits))
    return points, boundaries


def growth_charts(records: RunRecords) -> list[Part]:
    """Return the charts for which there are records."""
    axis = "tokens" if records.tokens_per_step else "steps"
    charts: list[Part] = []
    points, boundaries = validation_curve(records)
    if points:
        charts.append(
            LineChart(
                "Growth curve",
                [Line("validation", points)],
                f"{axis} of the run",
                "bits per character",
                "Dashed lines mark the ends of stages, where new blocks are inserted. A jump there "
                "is the effect of the new blocks before they are trained.",
                boundaries,
            )
        )
    losses = _per_stage(records, "loss")
    if losses:
        charts.append(
            LineChart(
                "Training loss by stage", losses, "tokens of the stage", "nats per token",
                "Each point is the mean since the previous row of the log.",
            )
        )  # fmt: skip
    speed = _over_run(records, "tokens_per_second")
    if speed:
        charts.append(
            LineChart(
                "Speed",
                [Line("training", speed)],
                f"{axis} of the run",
                "tokens per second",
                "Training only, without evaluations and checkpoints.",
                boundaries,
                from_zero=True,
            )
        )
    bars = [
        Bar(format_value(stage.get("stage")), [active, max(0.0, total - active)])
        for stage in records.stages
        if (active := number(stage, "active_parameters")) is not None
        and (total := number(stage, "total_parameters")) is not None
    ]
    if bars:
        charts.append(
            BarChart(
                "Parameters", bars, ["active", "frozen"], "stage", "parameters",
                "The token table is included: as frozen, unless it is trained.",
            )
        )  # fmt: skip
    return charts


def stage_table(records: RunRecords) -> Table:
    """Return a table with a row for each stage and a column for each recorded value."""
    columns = {name: title for name, title in _COLUMNS.items() if _any(records.stages, name)}
    speeds = [_speed(rows) for rows in records.by_stage()]
    names = [*columns, *(name for name in _recorded(records.stages) if name not in _COLUMNS)]
    # Drift has a separate table, and long texts are listed below the table.
    names = [name for name in names if "drift" not in name and not _is_prose(records, name)]
    header = [columns.get(name) or _title(name) for name in names]
    rows = [[_cell(name, flatten(stage).get(name)) for name in names] for stage in records.stages]
    if len(speeds) == len(rows) and any(speeds):
        header.append("tokens/s")
        for row, speed in zip(rows, speeds, strict=True):
            row.append("–" if speed is None else f"{speed:,.0f}")
    return Table(header, rows)


_COLUMNS = {
    "stage": "stage",
    "depth": "depth",
    "active_parameters": "active",
    "total_parameters": "total",
    "tokens": "tokens",
    "seconds": "seconds",
    "bits_at_start": "bits at start",
}


def _tiles(records: RunRecords) -> list[tuple[str, str]]:
    if not records.stages:
        return []
    last = records.stages[-1]
    tiles = [("stages", f"{len(records.stages)}")]
    planned = records.settings.get("schedule")
    if isinstance(planned, list) and len(planned) > len(records.stages):
        tiles = [("stages", f"{len(records.stages)} of {len(planned)}")]
    for name, title in (("depth", "blocks"), ("total_parameters", "parameters")):
        value = number(last, name)
        if value is not None:
            tiles.append((title, format_count(value)))
    for name, form in (("tokens", format_count), ("seconds", format_seconds)):
        values = [number(stage, name) for stage in records.stages]
        if all(value is not None for value in values):
            tiles.append((name if name == "tokens" else "time", form(sum(v or 0 for v in values))))
    bits = last.get("bits")
    if isinstance(bits, dict):
        tiles += [(f"{name}, bits/char", format_value(value)) for name, value in bits.items()][:3]
    return tiles


def _add_drift(report: Report, stages: Sequence[Record]) -> None:
    names = [name for name in _recorded(stages) if "drift" in name]
    if not names:
        return
    report.heading("LoRA drift", level=3)
    report.paragraph(
        "Difference between the merged weights and the float32 sum of weights and LoRA updates."
    )
    rows = [
        [
            format_value(stage.get("stage")),
            *(format_value(flatten(stage).get(name)) for name in names),
        ]
        for stage in stages
    ]
    report.table(["stage", *map(_title, names)], rows)


def _per_stage(records: RunRecords, name: str) -> list[Line]:
    scale = records.tokens_per_step or 1.0
    lines = []
    for index, rows in enumerate(records.by_stage()):
        points = [
            (step * scale, value)
            for row in rows
            if (value := number(row, name)) is not None
            and (step := number(row, "step")) is not None
        ]
        if points:
            lines.append(Line(f"stage {index + 1}", points))
    return lines


def _over_run(records: RunRecords, name: str) -> list[Point]:
    scale = records.tokens_per_step or 1.0
    return [
        (step * scale, value)
        for row in records.rows
        if (value := number(row, name)) is not None
        and (step := number(row, "global_step")) is not None
    ]


def _speed(rows: Sequence[Record]) -> float | None:
    """Return the training speed of a stage in tokens per second."""
    for row in reversed(rows):
        tokens, seconds = number(row, "tokens"), number(row, "seconds")
        if tokens and seconds:
            return tokens / seconds
    return None


def _stage(records: RunRecords, index: int) -> Record:
    return records.stages[index] if index < len(records.stages) else {}


def _any(stages: Sequence[Record], name: str) -> bool:
    return any(stage.get(name) is not None for stage in stages)


def _recorded(stages: Sequence[Record]) -> list[str]:
    """Return the dotted names of all values that some stage recorded."""
    names = (name for stage in stages for name, v in flatten(stage).items() if v is not None)
    return list(dict.fromkeys(names))


def _is_prose(records: RunRecords, name: str) -> bool:
    return any(_prose(flatten(stage).get(name)) for stage in records.stages)


def _prose(value: object) -> bool:
    return isinstance(value, str) and len(value) > _LONGEST_CELL


def _remarks(stages: Sequence[Record]) -> list[str]:
    """Return the long texts of the stages, such as why a stage ended early."""
    return [
        f"Stage {format_value(stage.get('stage'))}, {_title(name)}: {value}"
        for stage in stages
        for name, value in flatten(stage).items()
        if _prose(value)
    ]


def _title(name: str) -> str:
    if name.startswith("bits."):
        return f"{name.removeprefix('bits.')}, bits/char"
    return name.replace("_", " ")


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and name.startswith("bits"):
        return f"{value:.3f}"
    if isinstance(value, float) and name == "seconds":
        return f"{value:,.1f}"
    return format_value(value)

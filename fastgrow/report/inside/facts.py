"""The recorded settings, environment and events of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgrow.report.inside.records import Record, flatten, format_record, format_value
from fastgrow.report.page import Report
from fastgrow.report.parts import Table

ENVIRONMENT = ("environment", "machine", "versions")

# In every row of a run's log, and shown elsewhere on the page.
_LABELS = frozenset(
    {"event", "global_step", "run", "stage", "depth", "active_parameters", "total_parameters"}
)


def add_facts(report: Report, settings: Mapping[str, Any], rows: list[Record]) -> None:
    """Add the last section: all recorded settings and events."""
    report.heading("Settings and environment")
    environment = {name: settings[name] for name in ENVIRONMENT if settings.get(name)}
    if environment:
        report.add(Table(["environment", "value"], _rows(environment), words=True))
    else:
        report.note("The run recorded no environment: versions and device are unknown.")
    rest = {name: value for name, value in settings.items() if name not in environment}
    if rest:
        report.add(Table(["setting", "value"], _rows(rest), words=True))
    else:
        report.note("The run's settings are missing.")
    events = [row for row in rows if isinstance(row.get("event"), str)]
    if events:
        report.heading("Events", level=3)
        listed = [
            [
                str(e["event"]),
                format_value(e.get("stage")),
                format_value(e.get("global_step")),
                _further(e),
            ]
            for e in events
        ]
        report.add(Table(["event", "stage", "step", "details"], listed, words=True))


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    return [[name, format_value(value)] for name, value in flatten(values).items()]


def _further(event: Record) -> str:
    return format_record({name: value for name, value in event.items() if name not in _LABELS})

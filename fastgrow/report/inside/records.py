"""The records of a growth run, as far as they exist and can be read.

Records may belong to an unfinished run, be damaged, or have further fields of a later version.
Every value is checked where it is used, and unusable records are listed in `missing`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgrow._files import read_json
from fastgrow.errors import CheckpointError

Record = dict[str, Any]
# Larger values are no measurements and would overflow in a chart. NaN is not smaller either.
_LARGEST = 1e30
SETTINGS, GROWTH, METRICS = "run.json", "growth.json", "metrics.jsonl"


@dataclass
class RunRecords:
    """The records of a run.

    Attributes:
        folder: folder of the run.
        settings: content of `run.json`.
        stages: content of `growth.json`, one record per stage. If the file is missing, the records
            are made from the metrics.
        rows: rows of `metrics.jsonl`.
        missing: a sentence for each record that is missing, damaged or incomplete.
    """

    folder: Path
    settings: Record = field(default_factory=dict)
    stages: list[Record] = field(default_factory=list)
    rows: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float | None:
        """Training tokens per step, from the metrics or else from the settings."""
        for row in self.rows:
            tokens, step = number(row, "tokens"), number(row, "step")
            if tokens and step:
                return tokens / step
        train = self.settings.get("train")
        if not isinstance(train, Mapping):
            return None
        parts = [number(train, name) for name in ("batch_size", "accumulate", "seq_len")]
        return math.prod(part for part in parts if part) if all(parts) else None

    def by_stage(self) -> list[list[Record]]:
        """Return the rows of each stage, in order."""
        stages = [
            list(group)
            for label, group in itertools.groupby(self.rows, lambda row: row.get("stage"))
            if label is not None
        ]
        return [[row for row in rows if number(row, "step") is not None] for rows in stages]


def read_records(folder: Path) -> RunRecords:
    """Read the records in the folder of a growth run. Damaged records raise no error."""
    records = RunRecords(folder)
    settings, problem = read_optional(folder / SETTINGS)
    if isinstance(settings, dict):
        records.settings = settings
    else:
        records.missing.append(problem or f"{SETTINGS} is not a JSON object of settings.")
    _read_metrics(folder / METRICS, records)
    _read_stages(folder / GROWTH, records)
    return records


def read_optional(file: Path) -> tuple[Any, str | None]:
    """Return the content of a JSON file, or None and a sentence with the reason."""
    try:
        return read_json(file), None
    except CheckpointError as error:
        # The page shows the folder at the top, so the file name is enough.
        return None, str(error).replace(str(file), file.name) + "."
    except OSError as error:
        return None, f"{file.name}: {error.strerror or 'cannot be read'}."
    except RecursionError:
        return None, f"{file.name}: nested too deeply."


def number(record: Mapping[str, Any], *names: str) -> float | None:
    """Return a number of nested records, or None if it is missing, not finite or too large."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def flatten(record: Mapping[str, Any], prefix: str = "") -> Record:
    """Return the values of nested records by dotted names; records in a list become text."""
    values: Record = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            values |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
            values |= {
                f"{prefix}{name}.{i}": format_record(x) for i, x in enumerate(value, start=1)
            }
        else:
            values[f"{prefix}{name}"] = value
    return values


def format_record(record: Mapping[str, Any]) -> str:
    """Format a record on one line, without values that are None."""
    named = flatten(record).items()
    return ", ".join(f"{name} {format_value(value)}" for name, value in named if value is not None)


def format_value(value: Any) -> str:
    """Format a value of a record for people."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        inner = (f"({format_value(x)})" if isinstance(x, list) else format_value(x) for x in value)
        return ", ".join(inner) or "–"
    return json.dumps(value, ensure_ascii=False)


def _read_metrics(file: Path, records: RunRecords) -> None:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        records.missing.append(f"{file.name} is missing: {error.strerror or 'cannot be read'}.")
        return
    damaged = 0
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            records.rows.append(row)
        else:
            damaged += 1
    if damaged:
        records.missing.append(f"{file.name}: {damaged} of {len(lines)} lines are damaged.")


def _read_stages(file: Path, records: RunRecords) -> None:
    content, problem = read_optional(file)
    if problem is not None:
        records.missing.append(problem)
    if isinstance(content, Mapping):
        content = content.get("stages")
    if isinstance(content, list):
        records.stages = [stage for stage in content if isinstance(stage, dict)]
        if len(records.stages) < len(content):
            records.missing.append(f"{file.name}: some stages are not JSON objects.")
        return
    if problem is None:
        records.missing.append(f"{file.name} contains no list of stages.")
    records.stages = [_stage_of(rows) for rows in records.by_stage() if rows]
    if records.stages:
        records.missing.append(
            f"The stages are taken from {METRICS}: the run has not finished, or its {file.name} "
            "was lost."
        )


def _stage_of(rows: list[Record]) -> Record:
    """Return the record of a stage, made from its rows of metrics."""
    last: Record = {}
    for row in rows:
        last |= row
    stage = str(last.get("stage", "")).partition("/")[0]
    record: Record = {"stage": int(stage) if stage.isdigit() else stage}
    for name in ("depth", "active_parameters", "total_parameters", "tokens", "seconds"):
        record[name] = last.get(name)
    bits = number(last, "validation_bits_per_character")
    return record if bits is None else record | {"bits": {"validation": bits}}

"""The records of a growth run, read as far as they are there and whole.

Records may be of an unfinished run, damaged, or of a later version with more in them: every value
is checked where it is used, and what cannot be used is named in `missing`.
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
# Also false for NaN; what is larger was never measured, and would overflow in a chart.
_SENSE = 1e30
SETTINGS, GROWTH, METRICS = "run.json", "growth.json", "metrics.jsonl"


@dataclass
class RunRecords:
    """What a run wrote.

    Attributes:
        folder: of the run.
        settings: `run.json`.
        stages: `growth.json`, a record a stage; made from the metrics where that is missing.
        rows: `metrics.jsonl`.
        missing: a sentence for each record that is missing, damaged or unfinished.
    """

    folder: Path
    settings: Record = field(default_factory=dict)
    stages: list[Record] = field(default_factory=list)
    rows: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float | None:
        """Training tokens of a step, by the metrics or else by the settings."""
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
        """The rows of each stage, in order."""
        stages = [
            list(group)
            for label, group in itertools.groupby(self.rows, lambda row: row.get("stage"))
            if label is not None
        ]
        return [[row for row in rows if number(row, "step") is not None] for rows in stages]


def read_records(folder: Path) -> RunRecords:
    """Read what there is in the folder of a growth run; nothing in it makes this raise."""
    records = RunRecords(folder)
    settings, problem = read_optional(folder / SETTINGS)
    if isinstance(settings, dict):
        records.settings = settings
    else:
        records.missing.append(problem or f"{SETTINGS} holds no settings by name.")
    _read_metrics(folder / METRICS, records)
    _read_stages(folder / GROWTH, records)
    return records


def read_optional(file: Path) -> tuple[Any, str | None]:
    """A JSON file's content, or None and a sentence that says why it cannot be had."""
    try:
        return read_json(file), None
    except CheckpointError as error:
        # The page names the folder once; here the file's name is enough.
        return None, str(error).replace(str(file), file.name) + "."
    except OSError as error:
        return None, f"{file.name}: {error.strerror or 'cannot be read'}."
    except RecursionError:
        return None, f"{file.name}: is nested too deeply to be a record."


def number(record: Mapping[str, Any], *names: str) -> float | None:
    """A number in nested records, or None where there is none or it is beyond all sense."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _SENSE else None


def flat(record: Mapping[str, Any], prefix: str = "") -> Record:
    """A nested record's values by dotted names; records in a list become words."""
    values: Record = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
            values |= {f"{prefix}{name}.{i}": in_words(x) for i, x in enumerate(value, start=1)}
        else:
            values[f"{prefix}{name}"] = value
    return values


def in_words(record: Mapping[str, Any]) -> str:
    """A record in one line, without what it leaves open."""
    named = flat(record).items()
    return ", ".join(f"{name} {shown(value)}" for name, value in named if value is not None)


def shown(value: Any) -> str:
    """A record's value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        inner = (f"({shown(x)})" if isinstance(x, list) else shown(x) for x in value)
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
            records.missing.append(f"{file.name}: some stages are not records.")
        return
    if problem is None:
        records.missing.append(f"{file.name} holds no stages.")
    records.stages = [_stage_of(rows) for rows in records.by_stage() if rows]
    if records.stages:
        records.missing.append(
            "The stages are those that the metrics tell of: the run has not finished, or its "
            f"{file.name} was lost."
        )


def _stage_of(rows: list[Record]) -> Record:
    """What the metrics tell about a stage."""
    last: Record = {}
    for row in rows:
        last |= row
    stage = str(last.get("stage", "")).partition("/")[0]
    record: Record = {"stage": int(stage) if stage.isdigit() else stage}
    for name in ("depth", "active_parameters", "total_parameters", "tokens", "seconds"):
        record[name] = last.get(name)
    bits = number(last, "validation_bits_per_character")
    return record if bits is None else record | {"bits": {"validation": bits}}

"""A result file: where it was measured, by which command, and one row for each contender of a case.

JSON holds everything, CSV the rows alone, in the same order and with the same values.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgrow import _files
from fastgrow.errors import CheckpointError

SCHEMA = 1


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches at best, measured in the same run; None where not measured."""

    copy_gb_per_s: float | None = None
    matmul_tflop_per_s: float | None = None
    matmul_dtype: str | None = None


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Times are milliseconds and memory is MiB above the inputs. `ratio` is the time of the best
    library variant over this one's (above 1 is faster), told for our rows alone, and None with the
    reason in `withheld` where it is not to be trusted. `correct` was found on the shape `checked`,
    smaller than `shape` where the truth would be too large. Of the `runs` on a GPU, so many as
    `covered` tell the device's time alone, and the others what the host took to launch, too.
    """

    op: str
    shape: str
    dtype: str
    pass_: str
    contender: str
    role: str
    status: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    runs: int = 0
    covered: int | None = None
    peak_mib: float | None = None
    correct: bool | None = None
    error: float | None = None
    problem: str = ""
    checked: str = ""
    ratio: float | None = None
    withheld: str = ""
    tflop_per_s: float | None = None
    gb_per_s: float | None = None

    @property
    def cell(self) -> tuple[str, str, str, str]:
        return self.op, self.shape, self.dtype, self.pass_


@dataclass(frozen=True)
class Result:
    """A run of the suite."""

    command: str
    environment: dict[str, Any]
    ceilings: Ceilings
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA


FIELDS = tuple(f.name for f in dataclasses.fields(Row))


def as_json(result: Result) -> dict[str, Any]:
    return dataclasses.asdict(result)


def save(result: Result, folder: Path) -> None:
    """Write `results.json` and `results.csv`."""
    _files.write_json(folder / "results.json", as_json(result))
    _files.write_text(folder / "results.csv", csv_text(result.rows))


def load(path: Path) -> Result:
    """Read a result file.

    Raises:
        CheckpointError: it is missing, not JSON, of another version or not a result file.
    """
    tree = _files.read_json(path)
    version = tree.get("schema") if isinstance(tree, dict) else None
    if version != SCHEMA:
        raise CheckpointError(f"{path}: expected a result file of schema {SCHEMA}, got {version!r}")
    try:
        rows = [row_of(row) for row in tree["rows"]]
        ceilings = Ceilings(**tree["ceilings"])
        return Result(tree["command"], tree["environment"], ceilings, rows, tree["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a result file ({error})") from None


def row_of(tree: dict[str, Any]) -> Row:
    """A row from its JSON form.

    Raises:
        ValueError: a name is missing or unknown, or a value is of another type.
    """
    # Files from before it was counted lack it.
    tree = {"covered": None, **tree}
    if sorted(tree) != sorted(FIELDS):
        raise ValueError(f"a row has the names {', '.join(sorted(tree))}")
    for name, kind in typing.get_type_hints(Row).items():
        # JSON writers give whole numbers for floats at will.
        allowed = (kind, int) if kind in (float, float | None) else (kind,)
        if not any(isinstance(tree[name], option) for option in allowed):
            raise ValueError(f"{name} is {tree[name]!r}")
    return Row(**tree)


def csv_text(rows: Sequence[Row]) -> str:
    """The rows with a header line; an empty field stands for None."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return buffer.getvalue()

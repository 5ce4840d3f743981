"""A result file: the machine, the command, and one row for each contender of a case.

JSON has all data, CSV only the rows, in the same order and with the same values.
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
    """Best speeds of the machine, measured in the same run; None if not measured."""

    copy_gb_per_s: float | None = None
    matmul_tflop_per_s: float | None = None
    matmul_dtype: str | None = None


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Times are in milliseconds, and memory is in MiB in addition to the inputs. `ratio` is the time
    of the fastest library over this contender's (above 1 is faster); only fastgrow's rows have it,
    and if it cannot be trusted it is None and `withheld` has the reason. `correct` is the result of
    the check on the shape `checked`, which is smaller than `shape` if the reference would be too
    large. `covered` of the `runs` on a GPU measure the device's time only; the others include the
    host's launch time.
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
        CheckpointError: the file is missing, not JSON, from another version or not a result file.
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
    """Make a row from its JSON form.

    Raises:
        ValueError: a name is missing or unknown, or a value has a wrong type.
    """
    # Older files do not have `covered`.
    tree = {"covered": None, **tree}
    if sorted(tree) != sorted(FIELDS):
        raise ValueError(f"a row has the names {', '.join(sorted(tree))}")
    for name, kind in typing.get_type_hints(Row).items():
        # JSON writers may write floats as whole numbers.
        allowed = (kind, int) if kind in (float, float | None) else (kind,)
        if not any(isinstance(tree[name], option) for option in allowed):
            raise ValueError(f"{name} is {tree[name]!r}")
    return Row(**tree)


def csv_text(rows: Sequence[Row]) -> str:
    """Format the rows as CSV with a header line; an empty field means None."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return buffer.getvalue()

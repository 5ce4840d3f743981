"""`python -m benchmarks report FILE…`: Markdown tables of recorded results, with their origin.

The tables of measured speeds are made by this command, so that each number is from a result file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plans import plan_text
from benchmarks.results import Result, Row, load
from benchmarks.show import (
    OVERVIEW_HEADER,
    ceilings_text,
    environment_text,
    milliseconds,
    overview_rows,
    ratio_text,
    reached,
    uncovered_text,
)

HEADER = ("shape", "dtype", "pass", "variant", "median ms", "p20–p80", "peak MiB", "reached",
          "against best library")  # fmt: skip


def report(paths: Sequence[Path]) -> str:
    """Format the tables of all files, one after the other."""
    return "\n\n".join(markdown(load(path), _shown(path)) for path in paths) + "\n"


def markdown(result: Result, origin: str) -> str:
    """Format an overview and one table for each operation; the last line states their origin."""
    parts = [_table(OVERVIEW_HEADER, overview_rows(result.rows))]
    for op, rows in itertools.groupby(result.rows, key=lambda row: row.op):
        parts += [f"**{op}**", _table(HEADER, [_line(row, result) for row in rows])]
    parts += [*result.notes, f"Ceilings: {ceilings_text(result.ceilings)}."]
    parts.append(f"Origin: `{origin}`; {environment_text(result)}; made by `{result.command}`.")
    return "\n\n".join(parts)


def _line(row: Row, result: Result) -> list[str]:
    name = f"**{row.contender}**" if row.role == "ours" else row.contender
    start = [row.shape, row.dtype, row.pass_, name]
    if row.median_ms is None or row.p20_ms is None or row.p80_ms is None:
        return [*start, "not measured", "", "", "", row.status]
    ratio = ratio_text(row, result.rows)
    if row.withheld:
        ratio = f"withheld: {row.withheld}"
    spread = f"{milliseconds(row.p20_ms)}–{milliseconds(row.p80_ms)}"
    peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
    speed = reached(row, result.ceilings)
    plan = plan_text(row) if result.environment["kind"] == "cuda" else ""
    last = "; ".join(text for text in (ratio, uncovered_text(row), plan) if text)
    return [*start, milliseconds(row.median_ms), spread, peak, speed, last]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in lines)  # fmt: skip


def _shown(path: Path) -> str:
    """Return the path relative to the repository, or the file name if it is outside of it."""
    root = Path(__file__).resolve().parents[1]
    full = path.resolve()
    return str(full.relative_to(root)) if full.is_relative_to(root) else path.name

"""Speed-ups over the fastest library, reported only if they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import Row
from benchmarks.summary import geometric_mean


@dataclass(frozen=True)
class Overview:
    """The ratios of fastgrow's automatic choice over the cells of one operation and pass.

    `reported` is the number of cells that have a ratio.
    """

    op: str
    pass_: str
    cells: int
    reported: int
    mean: float | None
    worst: Row | None
    best: Row | None


def with_ratios(rows: Sequence[Row], required: Sequence[str]) -> list[Row]:
    """Fill in `ratio` or `withheld` in fastgrow's rows of one cell.

    The ratio is to the fastest library that ran. It is withheld if a library that might be faster
    has not run yet: one that was skipped because time ran out, or a required one that failed or was
    not measured. A library that is not installed or refuses the case is ignored.

    Args:
        rows: all contenders of one cell.
        required: libraries without which a comparison would be too favourable for fastgrow.
    """
    by_name = {row.contender: row for row in rows if row.role == "library"}
    libraries = {name: row.median_ms for name, row in by_name.items() if row.median_ms}
    waiting = [name for name, row in by_name.items() if row.status.startswith("skipped")]
    absent = [
        name
        for name in required
        if name not in libraries
        and name not in waiting
        and not (name in by_name and by_name[name].status.startswith("refused"))
    ]
    filled = []
    for row in rows:
        if row.role in ("library", "yardstick") or row.median_ms is None:
            filled.append(row)
            continue
        if row.correct is not True:
            reason = "not correct" if row.correct is False else "correctness was not checked"
        elif absent:
            reason = f"{' and '.join(absent)} did not run"
        elif waiting:
            reason = f"{' and '.join(waiting)} {'is' if len(waiting) == 1 else 'are'} not ready"
        elif not libraries:
            reason = "no library variant ran"
        else:
            ratio = min(libraries.values()) / row.median_ms
            filled.append(dataclasses.replace(row, ratio=ratio))
            continue
        filled.append(dataclasses.replace(row, withheld=reason))
    return filled


def ratio_range(row: Row, rows: Sequence[Row]) -> tuple[float, float] | None:
    """Return the lowest and highest ratio if both times vary within their p20 to p80.

    A range that contains 1 shows no difference. None if the row has no ratio.

    Args:
        row: row of the contender.
        rows: the result's rows, of which those of the row's cell are used.
    """
    libraries = [r for r in rows if r.cell == row.cell and r.role == "library" and r.median_ms]
    if row.ratio is None or not libraries or not row.p20_ms or not row.p80_ms:
        return None
    best = min(libraries, key=lambda library: library.median_ms or 0.0)
    if best.p20_ms is None or best.p80_ms is None:
        return None
    return best.p20_ms / row.p80_ms, best.p80_ms / row.p20_ms


def overviews(rows: Sequence[Row]) -> list[Overview]:
    """Return an overview for each operation and pass; withheld cells are counted but not used."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.role == "ours":
            groups.setdefault((row.op, row.pass_), []).append(row)
    return [_overview(op, pass_, group) for (op, pass_), group in groups.items()]


def _overview(op: str, pass_: str, rows: Sequence[Row]) -> Overview:
    reported = [(row.ratio, row) for row in rows if row.ratio is not None]
    if not reported:
        return Overview(op, pass_, len(rows), 0, None, None, None)
    mean = geometric_mean([ratio for ratio, _ in reported])
    worst = min(reported, key=lambda pair: pair[0])[1]
    best = max(reported, key=lambda pair: pair[0])[1]
    return Overview(op, pass_, len(rows), len(reported), mean, worst, best)

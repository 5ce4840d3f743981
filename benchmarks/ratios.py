"""Speed-ups: against the best library variant, and only where they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import Row
from benchmarks.summary import geometric_mean


@dataclass(frozen=True)
class Overview:
    """Our automatic choice over the cells of one operation and pass."""

    op: str
    pass_: str
    cells: int
    told: int
    mean: float | None
    worst: Row | None
    best: Row | None


def with_ratios(rows: Sequence[Row], required: Sequence[str]) -> list[Row]:
    """Fill in `ratio` or `withheld` in our rows of one cell.

    The ratio is to the fastest library that ran. It is withheld where one that might have been
    faster has still to run: one that was skipped for want of time, or a required one that failed or
    did not take part. What is not installed, or refuses the case, is no rival there.

    Args:
        rows: all contenders of one cell.
        required: libraries without which a comparison would flatter us.
    """
    rivals = {row.contender: row for row in rows if row.role == "library"}
    libraries = {name: row.median_ms for name, row in rivals.items() if row.median_ms}
    waiting = [name for name, row in rivals.items() if row.status.startswith("skipped")]
    absent = [
        name
        for name in required
        if name not in libraries
        and name not in waiting
        and not (name in rivals and rivals[name].status.startswith("refused"))
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
    """The ratio if both sides were at the unlucky, and at the lucky end of their p20 to p80.

    A range that holds 1 tells no difference. None where no ratio is told.

    Args:
        rows: the result's rows; those of the row's cell are looked at.
    """
    rivals = [r for r in rows if r.cell == row.cell and r.role == "library" and r.median_ms]
    if row.ratio is None or not rivals or not row.p20_ms or not row.p80_ms:
        return None
    best = min(rivals, key=lambda rival: rival.median_ms or 0.0)
    if best.p20_ms is None or best.p80_ms is None:
        return None
    return best.p20_ms / row.p80_ms, best.p80_ms / row.p20_ms


def overviews(rows: Sequence[Row]) -> list[Overview]:
    """One for each operation and pass, in the rows' order; cells withheld are counted, not used."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.role == "ours":
            groups.setdefault((row.op, row.pass_), []).append(row)
    return [_overview(op, pass_, group) for (op, pass_), group in groups.items()]


def _overview(op: str, pass_: str, rows: Sequence[Row]) -> Overview:
    told = [(row.ratio, row) for row in rows if row.ratio is not None]
    if not told:
        return Overview(op, pass_, len(rows), 0, None, None, None)
    mean = geometric_mean([ratio for ratio, _ in told])
    worst = min(told, key=lambda pair: pair[0])[1]
    best = max(told, key=lambda pair: pair[0])[1]
    return Overview(op, pass_, len(rows), len(told), mean, worst, best)

"""Format results for a terminal and for a page: tables, an overview, one figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.plans import plan_text
from benchmarks.ratios import overviews, ratio_range
from benchmarks.results import Ceilings, Result, Row

HEADER = ("contender", "median ms", "p20", "p80", "runs", "peak MiB", "reached", "right", "ratio")


def case_table(rows: Sequence[Row], ceilings: Ceilings, *, on_gpu: bool = False) -> str:
    """Format the rows of one case under its name, for a terminal.

    Args:
        rows: rows of the case.
        ceilings: ceilings of the machine.
        on_gpu: whether to show counted work next to the times, if it is known.
    """
    first = rows[0]
    measured = [
        [row.contender, *_numbers(row, rows, ceilings)] for row in rows if row.status == "ok"
    ]
    lines = [f"{first.op} {first.shape} {first.dtype} {first.pass_}"]
    lines += aligned([HEADER, *measured], left=1)
    lines += [f"  {row.contender}: {row.status}" for row in rows if row.status != "ok"]
    lines += [f"  {row.contender}: WRONG: {row.problem}" for row in rows if row.correct is False]
    lines += [f"  {row.contender}: ratio withheld: {row.withheld}" for row in rows if row.withheld]
    lines += [f"  {row.contender}: {uncovered_text(row)}" for row in rows if uncovered_text(row)]
    lines += [f"  {row.contender}: {plan_text(row)}" for row in rows if on_gpu and plan_text(row)]
    return "\n".join(lines)


def overview_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the overview's lines: operation, pass, cells with a ratio, ratios, worst cell."""
    lines = []
    for view in overviews(rows):
        cells = f"{view.reported} of {view.cells}"
        if view.worst is None or view.best is None or view.mean is None:
            lines.append([view.op, view.pass_, cells, "–", "–", "–", "–"])
            continue
        cell = f"{view.worst.shape} {view.worst.dtype}"
        numbers = [f"{x:.2f}×" for x in (view.worst.ratio, view.mean, view.best.ratio) if x]
        lines.append([view.op, view.pass_, cells, *numbers, cell])
    return lines


OVERVIEW_HEADER = ("op", "pass", "cells compared", "worst", "geometric mean", "best", "worst cell")


def overview_table(rows: Sequence[Row]) -> str:
    """Format the overview for a terminal."""
    title = "fastgrow against the best library variant (above 1 is faster)"
    cells = [OVERVIEW_HEADER, *overview_rows(rows)]
    return "\n".join([title, *aligned(cells, left=len(OVERVIEW_HEADER))])


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return the lines of a table: the first `left` columns aligned left, the others right.

    Not by Rich: the suite also runs where only torch and its dependencies are installed.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{'<' if i < left else '>'}{width}}}" for i, width in enumerate(widths)]
    return ["  " + "  ".join(forms).format(*row).rstrip() for row in rows]


def ceilings_text(ceilings: Ceilings) -> str:
    if ceilings.copy_gb_per_s is None or ceilings.matmul_tflop_per_s is None:
        return "not measured"
    return (
        f"copy {ceilings.copy_gb_per_s:.0f} GB/s, "
        f"{ceilings.matmul_dtype} matmul {ceilings.matmul_tflop_per_s:.3g} TFLOP/s, in the same run"
    )


def reached(row: Row, ceilings: Ceilings) -> str:
    """Format the achieved speed and its share of the ceiling, as FLOP/s or else bytes/s."""
    if row.tflop_per_s is not None:
        share = ""
        if ceilings.matmul_tflop_per_s and ceilings.matmul_dtype == row.dtype:
            share = f" ({row.tflop_per_s / ceilings.matmul_tflop_per_s:.0%})"
        return f"{row.tflop_per_s:.3g} TFLOP/s{share}"
    if row.gb_per_s is not None:
        share = f" ({row.gb_per_s / ceilings.copy_gb_per_s:.0%})" if ceilings.copy_gb_per_s else ""
        return f"{row.gb_per_s:.3g} GB/s{share}"
    return "–"


def environment_text(result: Result) -> str:
    """Format device and versions as one line."""
    known = result.environment
    names = ("driver", "cuda", "torch", "triton", "fastgrow", "commit", "date")
    parts = [str(known["device"])]
    if known["kind"] == "cpu":
        threads = known.get("threads")
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    parts += [f"{name} {known[name]}" for name in names if known.get(name)]
    return ", ".join(parts)


def _numbers(row: Row, rows: Sequence[Row], ceilings: Ceilings) -> list[str]:
    right = {True: "yes", False: "NO", None: "–"}[row.correct]
    return [
        *map(milliseconds, (row.median_ms, row.p20_ms, row.p80_ms)),
        str(row.runs),
        "–" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        reached(row, ceilings),
        right,
        ratio_text(row, rows) or "–",
    ]


def ratio_text(row: Row, rows: Sequence[Row]) -> str:
    """Format `1.06× (0.98–1.15)` with the range from p20 to p80; empty if there is no ratio."""
    if row.ratio is None:
        return ""
    found = ratio_range(row, rows)
    return f"{row.ratio:.2f}×" + (f" ({found[0]:.2f}–{found[1]:.2f})" if found else "")


def uncovered_text(row: Row) -> str:
    """Format how many times include the host's launch time; empty if none do, and on a CPU."""
    if row.covered is None or row.covered == row.runs:
        return ""
    return f"{row.runs - row.covered} of {row.runs} times include the host's launch time"


def milliseconds(value: float | None) -> str:
    """Format milliseconds with three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def draw(result: Result, path: Path) -> bool:
    """Write a PNG of every contender's speed: one line for each case, the fastest library at 1.

    Returns:
        False if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    cells: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in result.rows:
        if row.median_ms is not None:
            cells.setdefault(row.cell, []).append(row)
    figure = Figure(figsize=(9, 1.4 + 0.34 * max(1, len(cells))), layout="constrained", dpi=110)
    axis = figure.subplots()
    points: dict[str, list[tuple[float, int]]] = {}
    for i, rows in enumerate(cells.values()):
        for kind, speed in _speeds(rows):
            points.setdefault(kind, []).append((speed, i))
    # One call for each kind: a call for each row would take seconds at the end of a short run.
    for kind, (marker, color, label) in _MARKERS.items():
        if kind in points:
            x, y = zip(*points[kind], strict=True)
            size, order = (36, 3) if kind == "ours" else (22, 2)
            axis.scatter(x, y, marker=marker, color=color, s=size, label=label, zorder=order)
    axis.set_yticks(range(len(cells)), [" ".join(cell) for cell in cells], fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="0.5", linewidth=0.8)
    axis.grid(axis="x", which="both", alpha=0.2)
    axis.set_xlabel("speed against the best library variant (right is faster)")
    axis.set_title(environment_text(result), fontsize=7)
    if points:
        axis.legend(fontsize=7, loc="best", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


_MARKERS = {
    "ours": ("o", "tab:red", "fastgrow"),
    "withheld": ("x", "tab:red", "fastgrow, ratio withheld"),
    "implementation": ("|", "tab:red", "fastgrow, forced implementation"),
    "library": ("o", "tab:blue", "library variant"),
    "yardstick": ("x", "0.6", "yardstick"),
}


def _speeds(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Yield the kind of each row of a case and its speed relative to the fastest library."""
    libraries = [row.median_ms for row in rows if row.role == "library" and row.median_ms]
    for row in rows if libraries else ():
        if row.median_ms is not None:
            yield "withheld" if row.withheld else row.role, min(libraries) / row.median_ms

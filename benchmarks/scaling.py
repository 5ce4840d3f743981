"""Time over the number of experts, as a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.case import parse_shape
from benchmarks.results import Row
from benchmarks.show import aligned, milliseconds

HEADER = ("op", "K", "ours ms", "ms an expert", "GB/s", "best library ms", "ratio", "library")


def experts_of(row: Row) -> int:
    return parse_shape(row.shape)["K"]


def without_k(row: Row) -> str:
    """Return the shape without K, and the dtype, which are equal for the points of one line."""
    sizes = ",".join(f"{n}={s}" for n, s in parse_shape(row.shape).items() if n != "K")
    return f"{sizes} {row.dtype}"


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table line for each operation and K."""
    found = []
    for ours in (row for row in rows if row.role == "ours" and row.median_ms):
        best = best_library(ours, rows)
        K = experts_of(ours)
        found.append(
            [
                *(ours.op, str(K), milliseconds(ours.median_ms)),
                milliseconds((ours.median_ms or 0.0) / K),
                "–" if ours.gb_per_s is None else f"{ours.gb_per_s:.1f}",
                milliseconds(None if best is None else best.median_ms),
                "–" if ours.ratio is None else f"{ours.ratio:.2f}×",
                "–" if best is None else best.contender,
            ]
        )
    return found


def best_library(ours: Row, rows: Sequence[Row]) -> Row | None:
    libraries = [r for r in rows if r.cell == ours.cell and r.role == "library" and r.median_ms]
    return min(libraries, key=lambda row: row.median_ms or 0.0, default=None)


def table(rows: Sequence[Row]) -> str:
    """Format the table for a terminal."""
    shapes = sorted({without_k(row) for row in rows})
    title = f"time over the number of experts ({'; '.join(shapes)})"
    return "\n".join([title, *aligned([HEADER, *lines(rows)], left=0)])


def draw(rows: Sequence[Row], path: Path) -> bool:
    """Write a PNG with a panel for each operation; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    operations = list(dict.fromkeys(row.op for row in rows))
    width = 4.2 * max(1, len(operations))
    figure = Figure(figsize=(width, 3.6), layout="constrained", dpi=110)
    axes = figure.subplots(1, max(1, len(operations)), squeeze=False)[0]
    for axis, op in zip(axes, operations, strict=False):
        own = [row for row in rows if row.op == op and row.median_ms]
        for name in dict.fromkeys(row.contender for row in own):
            line = [row for row in own if row.contender == name]
            ours = line[0].role == "ours"
            axis.plot(
                [experts_of(row) for row in line],
                [row.median_ms or 0.0 for row in line],
                marker="o",
                markersize=4,
                color="tab:red" if ours else None,
                linestyle=":" if line[0].role == "yardstick" else "-",
                linewidth=2 if ours else 1,
                label=name,
            )
        axis.set_title(f"{op}, {without_k(own[0])}" if own else op, fontsize=8)
        axis.set_xlabel("experts")
        axis.set_ylabel("median ms")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(which="both", alpha=0.2)
        axis.legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True

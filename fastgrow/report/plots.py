"""The figures of a report. Each function draws one figure and writes it as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastgrow._files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Unit = Literal["tokens", "flops"]
"""What the horizontal axis of a learning curve counts."""
# A legend with more names than this would cover the curves of its panel.
_NAMES_INSIDE = 10


@dataclass(frozen=True)
class Curve:
    """The validation curve of a run: bits per character against training tokens."""

    tokens: Sequence[int]
    bits: Sequence[float]
    boundaries: Sequence[int] = ()


def growth_curves(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw a panel for each specialist with a line for each run. Stage boundaries are dashed.

    Args:
        panels: curves by specialist and run ("grown", "never grown", …).
        path: path of the PNG.
    """
    figure = new_figure(4.2 * len(panels), 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            axis.plot(np.asarray(curve.tokens) / 1000, curve.bits, label=name, linewidth=1.5)
            for boundary in curve.boundaries:
                axis.axvline(boundary / 1000, color="0.6", linestyle="--", linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("thousand tokens")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("validation, bits per character")
    axes[-1].legend(frameon=False)
    save_figure(figure, path)


def study_lines(lines: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draw bits per character after training against training FLOPs, a line for each recipe.

    Args:
        lines: (FLOPs, bits per character) of each recipe, by name, in ascending order.
        path: path of the PNG.
    """
    figure = new_figure(5.6, 3.8)
    axis = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        at, bits = zip(*points, strict=True)
        marker = "os^Dv<>"[number % 7]
        axis.plot(np.asarray(at) / 1e12, bits, marker=marker, linewidth=1.2, label=name)
    axis.set_xscale("log")
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axis.set_xlabel("TFLOP of training")
    axis.set_ylabel("test, bits per character")
    axis.grid(alpha=0.25, which="both")
    axis.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def study_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]],
    unit: Unit,
    path: Path,
) -> None:
    """Draw a panel for each mix of texts, a colour for each training, a line for each seed.

    Args:
        panels: curves by mix of texts and training; each curve is (tokens or FLOPs, bits per
            character).
        unit: unit of the x axis.
        path: path of the PNG.
    """
    label, scale = {"tokens": ("thousand tokens", 1e3), "flops": ("TFLOP", 1e12)}[unit]
    most = max((len(trainings) for trainings in panels.values()), default=0)
    outside = most > _NAMES_INSIDE
    columns = 1 if outside else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(9 if outside else 5 * columns, max(3.8, 0.22 * most + 1) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = grid.flat[: len(panels)]
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in grid[:, 0]:
        axis.set_ylabel("validation, bits per character")
    for axis, (title, trainings) in zip(axes, panels.items(), strict=True):
        for number, (name, curves) in enumerate(trainings.items()):
            for i, (at, bits) in enumerate(curves):
                axis.plot(
                    np.asarray(at) / scale,
                    bits,
                    color=f"C{number % 10}",
                    linestyle=("-", "--", ":")[number // 10 % 3],
                    linewidth=1.0,
                    label=name if i == 0 else None,
                )
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        if any(trainings.values()):
            legend = axis.legend(frameon=False, fontsize="small")
            if outside:
                legend.set_loc("upper left")
                legend.set_bbox_to_anchor((1.0, 1.0))
    save_figure(figure, path)


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], path: Path
) -> None:
    """Draw a table of numbers as a heat map. Lower (better) values are darker.

    Args:
        rows, columns: labels of the rows and columns.
        values: bits per character, a list for each row.
        path: path of the PNG.
    """
    array = np.asarray(values, dtype=float)
    figure = new_figure(1.6 + 1.3 * len(columns), 1.2 + 0.42 * len(rows))
    axis = figure.subplots()
    # Each column has a separate scale, because the texts differ in difficulty.
    low, high = array.min(axis=0), array.max(axis=0)
    shade = (array - low) / np.where(high > low, high - low, 1.0)
    axis.imshow(shade, cmap="YlGnBu_r", aspect="auto", vmin=-0.15, vmax=1.15)
    for i, row in enumerate(array):
        for j, value in enumerate(row):
            color = "white" if shade[i, j] < 0.35 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel("test text, bits per character (lower is better)")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    # Figure instead of pyplot: no global state, no window system, safe in any thread.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def save_figure(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")

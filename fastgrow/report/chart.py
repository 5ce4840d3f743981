"""Line charts and bar charts as SVG inside the page.

Matplotlib draws the figures that are files. These charts are markup of the page: their colours
follow the light or dark scheme through CSS variables, every point has a tooltip, and a chart has 5
to 14 KB. Matplotlib's SVG of the same lines is 2.1 to 2.6 times larger, has no tooltips, and needs
its colours and element ids rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgrow.report.markup import render_part
from fastgrow.training.log import format_count

Point = tuple[float, float]

# In units of the SVG's view box. A chart is shown about this wide, so its text has the page's size.
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 38
_COLOURS = 6
_LEAST_SPAN = 1e-30
_MOST_POINTS = 400
_MOST_DOTS = 60


@dataclass(frozen=True)
class Line:
    """A named line through (x, y) points with ascending x."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class LineChart:
    """Lines over one x axis that starts at zero.

    A line of more than 400 points is drawn as the means of equal groups of its points.

    Attributes:
        title: title of the chart.
        lines: at least one line, with at least one point each.
        x, y: labels of the axes.
        caption: text below the chart.
        boundaries: x values marked by dashed vertical lines.
        from_zero: whether the y axis starts at zero.
    """

    title: str
    lines: Sequence[Line]
    x: str
    y: str
    caption: str = ""
    boundaries: Sequence[float] = field(default=())
    from_zero: bool = False

    def markdown(self) -> str:
        ends = "; ".join(
            f"{line.name}: {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}"
            for line in self.lines
        )
        return f"{self.title}. {ends}. {self.caption}".strip()

    def html(self, folder: Path) -> str:
        points = [point for line in self.lines for point in line.points]
        x_ticks = ticks(0, max(x for x, _ in points))
        low = 0.0 if self.from_zero else min(y for _, y in points)
        y_ticks = ticks(low, max(y for _, y in points))
        drawing = _Drawing((x_ticks[0], x_ticks[-1]), y_ticks, self.x)
        for x in x_ticks:
            drawing.x_label(x, format_count(x), "end" if x == x_ticks[-1] else "middle")
        for x in self.boundaries:
            drawing.rule("boundary", (x, y_ticks[-1]), (x, y_ticks[0]))
        colours = [colour(i, len(self.lines)) for i in range(len(self.lines))]
        for line, stroke in zip(self.lines, colours, strict=True):
            drawing.line(line, stroke)
        names = [line.name for line in self.lines]
        return drawing.html(self, list(zip(names, colours, strict=True)))


@dataclass(frozen=True)
class Bar:
    """A bar of parts stacked from zero."""

    name: str
    parts: Sequence[float]


@dataclass(frozen=True)
class BarChart:
    """Stacked bars.

    Attributes:
        title: title of the chart.
        bars: at least one bar, from left to right.
        parts: names of the parts of a bar, the lowest first.
        x, y: labels of the axes.
        caption: text below the chart.
    """

    title: str
    bars: Sequence[Bar]
    parts: Sequence[str]
    x: str
    y: str
    caption: str = ""

    def markdown(self) -> str:
        bars = "; ".join(
            f"{bar.name}: {', '.join(map(format_count, bar.parts))}" for bar in self.bars
        )
        return f"{self.title} ({', '.join(self.parts)}). {bars}. {self.caption}".strip()

    def html(self, folder: Path) -> str:
        y_ticks = ticks(0, max(sum(bar.parts) for bar in self.bars))
        drawing = _Drawing((0, len(self.bars)), y_ticks, self.x)
        colours = [colour(i, len(self.parts)) for i in range(len(self.parts))]
        for i, bar in enumerate(self.bars):
            below = 0.0
            for name, value, fill in zip(self.parts, bar.parts, colours, strict=True):
                title = f"{bar.name}, {name}: {value:,.0f}"
                drawing.bar((i + 0.2, below), (i + 0.8, below + value), fill, title)
                below += value
            drawing.x_label(i + 0.5, bar.name)
        return drawing.html(self, list(zip(self.parts, colours, strict=True)))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers at equal steps, from at most `low` to at least `high`."""
    if not high - low > max(1e-9 * max(abs(low), abs(high)), _LEAST_SPAN):
        # All values are equal: make space around the value, or above zero.
        margin = abs(low) * 0.1
        low, high = (low - margin, high + margin) if margin > _LEAST_SPAN else (0.0, 1.0)
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def colour(index: int, of: int) -> str:
    """Return the colour of a series: a CSS variable for up to 6 series, shades for more."""
    if of <= _COLOURS:
        return f"var(--s{index})"
    return f"hsl({220 - 200 * index / (of - 1):.0f} 65% 50%)"


class _Drawing:
    """The shapes of a chart, with their places in the view box.

    Args:
        x_range: ends of the x axis.
        y_ticks: ticks of the y axis, from its lower to its upper end.
        x_name: label of the x axis.
    """

    def __init__(self, x_range: Point, y_ticks: Sequence[float], x_name: str) -> None:
        self.rules: list[dict[str, str]] = []
        self.bars: list[dict[str, str]] = []
        self.lines: list[dict[str, str]] = []
        self.dots: list[dict[str, str]] = []
        self.labels: list[dict[str, str]] = []
        self._place = _scale(x_range, (y_ticks[0], y_ticks[-1]))
        for y in y_ticks:
            self.rule("grid", (x_range[0], y), (x_range[1], y))
            at = self._place((x_range[0], y))[1] + 4
            text = format_count(y) if y_ticks[-1] >= 1000 else f"{y:g}"
            self._label(_LEFT - 6, at, text, "end")
        self._label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, x_name, "middle")

    def rule(self, kind: str, start: Point, end: Point) -> None:
        (x1, y1), (x2, y2) = self._place(start), self._place(end)
        self.rules.append({"kind": kind, **_rounded(x1=x1, y1=y1, x2=x2, y2=y2)})

    def bar(self, low: Point, high: Point, fill: str, title: str) -> None:
        (left, bottom), (right, top) = self._place(low), self._place(high)
        box = _rounded(x=left, y=top, width=right - left, height=bottom - top)
        self.bars.append({**box, "colour": fill, "title": title})

    def line(self, line: Line, stroke: str) -> None:
        points = _thinned(line.points)
        places = [_rounded(x=x, y=y) for x, y in map(self._place, points)]
        path = " ".join(f"{place['x']},{place['y']}" for place in places)
        self.lines.append({"colour": stroke, "points": path})
        if len(points) <= _MOST_DOTS:
            for (x, y), place in zip(points, places, strict=True):
                title = f"{line.name}: {y:.4g} at {format_count(x)}"
                self.dots.append({**place, "colour": stroke, "title": title})

    def x_label(self, x: float, text: str, anchor: str = "middle") -> None:
        self._label(self._place((x, 0))[0], _HEIGHT - _BOTTOM + 16, text, anchor)

    def html(self, part: Any, legend: Sequence[tuple[str, str]]) -> str:
        return render_part(
            "chart", part=part, width=_WIDTH, height=_HEIGHT, legend=legend, drawing=self
        )

    def _label(self, x: float, y: float, text: str, anchor: str) -> None:
        self.labels.append({**_rounded(x=x, y=y), "text": text, "anchor": anchor})


def _rounded(**places: float) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in places.items()}


def _scale(x_range: Point, y_range: Point) -> Callable[[Point], Point]:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(point: Point) -> Point:
        x = (point[0] - x_range[0]) / (x_range[1] - x_range[0])
        y = (point[1] - y_range[0]) / (y_range[1] - y_range[0])
        return _LEFT + width * x, _TOP + height * (1 - y)

    return place


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]

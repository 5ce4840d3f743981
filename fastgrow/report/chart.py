"""Line and bar charts as SVG: small, with text to select, in the colours of the page's scheme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgrow.training.log import format_count

Point = tuple[float, float]

# In the drawing's own units; drawn about this wide, so that its text has the page's size.
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 38
_COLOURS = 6
_LEAST_SPAN = 1e-30
_MOST_POINTS = 400
_MOST_DOTS = 60


@dataclass(frozen=True)
class Line:
    """A named row of (x, y) points in the order of x."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class LineChart:
    """Lines over one x axis from zero.

    A line of more than 400 points is drawn as the means of equal groups of its points.

    Attributes:
        title: what is shown.
        lines: at least one, with at least one point each.
        x, y: the axes' labels.
        caption: below the chart.
        boundaries: places on the x axis marked by dashed lines.
        from_zero: the y axis begins at zero.
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
        place = _scale((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
        drawn = [_horizontal(y_ticks, place)]
        for x in x_ticks:
            at = place((x, y_ticks[0]))[0]
            anchor = "end" if x == x_ticks[-1] else "middle"
            drawn.append(_text(at, _HEIGHT - _BOTTOM + 16, format_count(x), anchor))
        for boundary in self.boundaries:
            at = place((boundary, 0))[0]
            drawn.append(_rule("boundary", at, _TOP, at, _HEIGHT - _BOTTOM))
        for i, line in enumerate(self.lines):
            drawn.append(_polyline(line, colour(i, len(self.lines)), place))
        drawn.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, self.x, "middle"))
        named = [(line.name, colour(i, len(self.lines))) for i, line in enumerate(self.lines)]
        return _figure(self.title, self.y, drawn, named, self.caption)


@dataclass(frozen=True)
class Bar:
    """A bar of parts stacked from zero."""

    name: str
    parts: Sequence[float]


@dataclass(frozen=True)
class BarChart:
    """Stacked bars.

    Attributes:
        title: what is shown.
        bars: at least one, from left to right.
        parts: names of a bar's parts, the lowest first.
        x, y: the axes' labels.
        caption: below the chart.
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
        place = _scale((0, len(self.bars)), (y_ticks[0], y_ticks[-1]))
        drawn = [_horizontal(y_ticks, place)]
        for i, bar in enumerate(self.bars):
            below = 0.0
            left, right = place((i + 0.2, 0))[0], place((i + 0.8, 0))[0]
            for j, (name, value) in enumerate(zip(self.parts, bar.parts, strict=True)):
                low, high = place((0, below))[1], place((0, below + value))[1]
                said = html.escape(f"{bar.name}, {name}: {value:,.0f}")
                drawn.append(
                    f'<rect x="{left:.1f}" y="{high:.1f}" width="{right - left:.1f}" '
                    f'height="{low - high:.1f}" style="fill: {colour(j, len(self.parts))}">'
                    f"<title>{said}</title></rect>"
                )
                below += value
            drawn.append(_text((left + right) / 2, _HEIGHT - _BOTTOM + 16, bar.name, "middle"))
        drawn.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, self.x, "middle"))
        named = [(name, colour(j, len(self.parts))) for j, name in enumerate(self.parts)]
        return _figure(self.title, self.y, drawn, named, self.caption)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers at equal steps, the first at or below `low`, the last at or above `high`."""
    if not high - low > max(1e-9 * max(abs(low), abs(high)), _LEAST_SPAN):
        # All the same: room above zero, or around the value.
        margin = abs(low) * 0.1
        low, high = (low - margin, high + margin) if margin > _LEAST_SPAN else (0.0, 1.0)
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def colour(index: int, of: int) -> str:
    """The colour of a series: the page's own for a few, shades along a scale for many."""
    if of <= _COLOURS:
        return f"var(--s{index})"
    return f"hsl({220 - 200 * index / (of - 1):.0f} 65% 50%)"


def _scale(x_range: tuple[float, float], y_range: tuple[float, float]) -> Callable[[Point], Point]:
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


def _polyline(line: Line, stroke: str, place: Callable[[Point], Point]) -> str:
    points = _thinned(line.points)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    drawn = f'<polyline class="line" style="stroke: {stroke}" points="{path}"/>'
    if len(points) > _MOST_DOTS:
        return drawn
    for point in points:
        x, y = place(point)
        said = html.escape(f"{line.name}: {point[1]:.4g} at {format_count(point[0])}")
        drawn += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" style="fill: {stroke}">'
            f"<title>{said}</title></circle>"
        )
    return drawn


def _horizontal(y_ticks: Sequence[float], place: Callable[[Point], Point]) -> str:
    drawn = ""
    for y in y_ticks:
        at = place((0, y))[1]
        label = format_count(y) if y_ticks[-1] >= 1000 else f"{y:g}"
        drawn += _rule("grid", _LEFT, at, _WIDTH - _RIGHT, at)
        drawn += _text(_LEFT - 6, at + 4, label, "end")
    return drawn


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _figure(
    title: str,
    unit: str,
    drawn: Sequence[str],
    named: Sequence[tuple[str, str]],
    caption: str,
) -> str:
    keys = "".join(
        f'<span><span class="key" style="background: {stroke}"></span>{html.escape(name)}</span>'
        for name, stroke in named
    )
    return (
        f"<figure><h3>{html.escape(title)}</h3>"
        f'<div class="legend"><span>{html.escape(unit)}</span>{keys}</div>'
        f'<svg class="chart" role="img" aria-label="{html.escape(title)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(drawn)}</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

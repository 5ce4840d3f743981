"""Charts: values are at the places that the axes show, and long lines are thinned."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgrow.report.chart import Bar, BarChart, Line, LineChart, colour, ticks

HERE = Path()
values = st.floats(-1e12, 1e12, allow_nan=False)


@given(values, values)
def test_ticks_are_even_and_cover(low: float, high: float) -> None:
    low, high = sorted((low, high))
    places = ticks(low, high)
    assert places == sorted(set(places))
    slack = 1e-8 * max(abs(low), abs(high), 1e-20)
    assert places[0] <= low + slack
    assert places[-1] >= high - slack
    assert 2 <= len(places) <= 12
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_ticks_are_round() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(4.2, 5.1) == pytest.approx([4.2, 4.4, 4.6, 4.8, 5.0, 5.2])
    assert ticks(3, 3) == pytest.approx([2.6, 2.8, 3.0, 3.2, 3.4])
    assert ticks(0, 0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def _dots(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_are_at_their_values() -> None:
    line = Line("loss", [(0, 4.0), (50, 2.0), (100, 0.0)])
    svg = LineChart("t", [line], "tokens", "nats", boundaries=[50]).html(HERE)
    (x0, y0), (x1, y1), (x2, y2) = _dots(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.1)
    assert y0 < y1
    labels = {
        text: float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">(\d)<', svg)
    }
    # The baseline of a label is 4 units below its line.
    assert labels["4"] - 4 == pytest.approx(y0, abs=0.1)
    assert labels["0"] - 4 == pytest.approx(y2, abs=0.1)
    assert float(re.findall(r'class="boundary" x1="([\d.]+)"', svg)[0]) == pytest.approx(
        x1, abs=0.1
    )


def test_a_long_line_is_drawn_as_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(4000)]
    svg = LineChart("t", [Line("a", points)], "x", "y").html(HERE)
    drawn = re.findall(r'points="(.*?)"', svg)[0].split()
    assert len(drawn) == 400
    # Ten points each: half are 0 and half are 1.
    assert len({point.partition(",")[2] for point in drawn}) == 1


def test_bars_are_stacked() -> None:
    chart = BarChart("t", [Bar("1", [30, 10]), Bar("2", [30, 0])], ["active", "frozen"], "s", "n")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" style', chart.html(HERE))]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert heights[2] == pytest.approx(heights[0], abs=0.2)
    assert heights[3] == 0
    tops = [float(y) for y in re.findall(r'<rect x="[\d.]+" y="([\d.]+)"', chart.html(HERE))]
    assert tops[0] == pytest.approx(tops[1] + heights[1], abs=0.2)


def test_each_series_has_a_different_colour() -> None:
    for n in (1, 2, 6, 7, 16):
        assert len({colour(i, n) for i in range(n)}) == n


def test_names_are_escaped() -> None:
    line = Line("<a>", [(1, 1)])
    for chart in (
        LineChart("<a>", [line], "<a>", "<a>", "<a>"),
        BarChart("<a>", [Bar("<a>", [1])], ["<a>"], "<a>", "<a>", "<a>"),
    ):
        assert "<a>" not in chart.html(HERE)
        assert chart.html(HERE).count("&lt;a&gt;") >= 6
        assert "<a>" in chart.markdown()

"""The page in a real browser, at the widths of a desktop and a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image
from test_run_page import demo_of

from fastgrow.report.inside import PageOptions, write_page

pytestmark = pytest.mark.slow

# Elements that extend beyond the right edge of the window and are not inside a scrolling box.
_OVERFLOW = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide *'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.tagName + '.' + e.className)
"""
_SIZES = "[document.documentElement.scrollWidth, innerWidth, document.body.innerText.length]"
_COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path (Debian package chromium) or in FASTGROW_CHROMIUM")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("kind", ["grown", "duo", "demo"])
def test_every_page_fits_without_errors_or_requests(
    browser: Browser, runs: Path, kind: str
) -> None:
    folder = demo_of(runs) if kind == "demo" else runs / kind
    long = "w" * 300
    options = PageOptions(text=f"the cat sat {long} <script>document.title = 'run'</script>")
    page = write_page(folder, options=options)
    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.open(page, width, dark=dark)
        assert browser.complaints() == []
        assert browser.requests() == [page.resolve().as_uri()]
        scroll_width, inner_width, letters = browser.evaluate(_SIZES)
        assert inner_width == width
        assert scroll_width <= width
        assert browser.evaluate(_OVERFLOW) == []
        assert letters > 500
        headings = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
        links = browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)")
        assert len(headings) == len(links) >= 4
        assert browser.evaluate(
            "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
        )
        assert browser.evaluate("document.title") == f"{folder.name}: " + {
            "grown": "a growth run", "duo": "a model", "demo": "a folder of runs",
        }[kind]  # fmt: skip
        # Every chart and glyph has a height.
        assert browser.evaluate(
            "[...document.querySelectorAll('svg')].every(s => s.clientHeight > 20)"
        )
        shot = runs / f"{kind}-{width}.png"
        browser.screenshot(shot)
        pixels = np.asarray(Image.open(shot).convert("L"), dtype=float)
        assert pixels.shape[1] >= width - 20
        # Every part of 800 pixels has content, and the background matches the color scheme.
        for top in range(0, pixels.shape[0] - 800, 800):
            assert pixels[top : top + 800].std() > 3
        assert (np.median(pixels) < 80) == dark


def test_dark_text_on_light_and_light_on_dark(browser: Browser, runs: Path) -> None:
    page = write_page(runs / "grown", options=PageOptions(models=False))

    def brightness(colour: str) -> float:
        return sum(map(float, colour.strip("rgb()").split(","))) / 3

    browser.open(page, 1280)
    paper, ink = map(brightness, browser.evaluate(_COLOURS))
    assert paper > 200 > 60 > ink
    browser.open(page, 1280, dark=True)
    paper, ink = map(brightness, browser.evaluate(_COLOURS))
    assert paper < 60 < 200 < ink


def test_text_in_charts_can_be_selected(browser: Browser, runs: Path) -> None:
    page = write_page(runs / "grown", options=PageOptions(models=False))
    browser.open(page, 1280)
    selected = browser.evaluate(
        "(() => { getSelection().selectAllChildren(document.querySelector('svg.chart'));"
        " return getSelection().toString() })()"
    )
    assert "tokens of the run" in selected

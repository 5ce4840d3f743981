"""A report has the same content in Markdown and in HTML, and all texts are escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from fastgrow.report import Curve, Report, growth_curves, matrix, study_curves


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_both_formats_contain_every_part(tmp_path: Path) -> None:
    matrix(["a", "b"], ["x"], [[1.0], [2.0]], tmp_path / "m.png")
    report = Report("Growth & <composition>")
    report.heading("Depth")
    report.paragraph("bits < 3 & falling")
    report.points(["first", "second"])
    report.table(["run", "bits"], [["grown | twice", "2.50"]])
    report.sample("line one\n```\n<b>not bold</b>")
    report.figure("m.png", "the matrix")
    report.write(tmp_path)

    page = _Text()
    page.feed((tmp_path / "report.html").read_text())
    text = "\n".join(page.words)
    for words in ("Growth & <composition>", "bits < 3 & falling", "second", "grown | twice"):
        assert words in text
    assert "<b>not bold</b>" in text
    assert "b" not in page.tags
    assert page.images[0].startswith("data:image/png;base64,iVBOR")

    markdown = (tmp_path / "report.md").read_text()
    assert "| grown \\| twice | 2.50 |" in markdown
    assert "````text\nline one\n```\n<b>not bold</b>\n````" in markdown
    assert "![the matrix](m.png)" in markdown


def test_growth_curves_are_drawn(tmp_path: Path) -> None:
    curve = Curve([0, 10, 20], [5.0, 4.0, 3.5], [10])
    growth_curves({"ru": {"grown": curve}, "zh": {"grown": curve}}, tmp_path / "one.png")
    moved = Curve([0, 10, 20], [5.0, 4.9, 4.8], [10])
    growth_curves({"ru": {"grown": moved}, "zh": {"grown": curve}}, tmp_path / "two.png")
    one, two = (tmp_path / "one.png").read_bytes(), (tmp_path / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert one != two


def test_a_panel_is_as_high_as_a_long_list_of_its_names(tmp_path: Path) -> None:
    sizes = {}
    for n in (10, 24):
        trainings = {f"training-{i}": [([1e6, 2e6], [3.0, 2.0])] for i in range(n)}
        study_curves({"ru": trainings}, "tokens", tmp_path / f"{n}.png")
        sizes[n] = Image.open(tmp_path / f"{n}.png").size
    assert sizes[24][0] > 1.5 * sizes[10][0]
    # The legend has 24 lines of 22 pixels.
    assert sizes[24][1] > 24 * 22 > sizes[10][1]

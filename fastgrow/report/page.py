"""A report that is written as Markdown, for a repository, and as one HTML file, for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from fastgrow import _files
from fastgrow.report.markup import render_page
from fastgrow.report.parts import (
    Figure,
    Heading,
    Note,
    Paragraph,
    Part,
    Points,
    Sample,
    Table,
    escape_markdown,
)


@dataclass
class Report:
    """A report: a title and parts, in the order in which they are added. All texts are plain."""

    title: str
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Add a part. The methods below add the common kinds."""
        self.parts.append(part)

    def heading(self, text: str, level: int = 2) -> None:
        self.add(Heading(text, level))

    def paragraph(self, text: str) -> None:
        self.add(Paragraph(text))

    def note(self, text: str) -> None:
        """Add a highlighted paragraph."""
        self.add(Note(text))

    def points(self, items: Sequence[str]) -> None:
        self.add(Points(items))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.add(Table(header, rows))

    def figure(self, name: str, caption: str) -> None:
        """Add a PNG file that is in the report's folder."""
        self.add(Figure(name, caption))

    def sample(self, text: str, prompt: str = "", label: str = "") -> None:
        """Add generated text, with its white space and with the prompt marked."""
        self.add(Sample(text, prompt, label))

    def write(self, folder: Path) -> None:
        """Write `report.md` and `report.html` to `folder`. The HTML file contains the figures."""
        _files.write_text(folder / "report.md", self.markdown())
        _files.write_text(folder / "report.html", self.html(folder))

    def markdown(self) -> str:
        parts = [f"# {escape_markdown(self.title)}", *(part.markdown() for part in self.parts)]
        return "\n\n".join(parts) + "\n"

    def html(self, folder: Path, *, generator: str = "fastgrow", contents: bool = False) -> str:
        """Return the page.

        Args:
            folder: folder of the figures.
            generator: name of the program, written to the page's metadata.
            contents: whether to put links to the sections at the top.
        """
        sections = [part for part in self.parts if isinstance(part, Heading) and part.level == 2]
        return render_page(
            title=self.title,
            generator=generator,
            sections=sections if contents else [],
            parts=[Markup(part.html(folder)) for part in self.parts],
        )

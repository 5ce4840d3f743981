"""One report, written twice: Markdown for reading in a repository, one HTML file for a browser."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgrow import _files
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
from fastgrow.report.style import STYLE


@dataclass
class Report:
    """A report in the order in which its parts are added. All texts are plain, not markup."""

    title: str
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Any part; the methods below add the common ones."""
        self.parts.append(part)

    def heading(self, text: str, level: int = 2) -> None:
        self.add(Heading(text, level))

    def paragraph(self, text: str) -> None:
        self.add(Paragraph(text))

    def note(self, text: str) -> None:
        """A paragraph that stands out."""
        self.add(Note(text))

    def points(self, items: Sequence[str]) -> None:
        self.add(Points(items))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.add(Table(header, rows))

    def figure(self, name: str, caption: str) -> None:
        """A PNG file that stands in the report's folder."""
        self.add(Figure(name, caption))

    def sample(self, text: str, prompt: str = "", label: str = "") -> None:
        """Text as a model wrote it, white space and all, with the prompt marked."""
        self.add(Sample(text, prompt, label))

    def write(self, folder: Path) -> None:
        """Write `report.md` and `report.html` (self-contained: figures are inside) to `folder`."""
        _files.write_text(folder / "report.md", self.markdown())
        _files.write_text(folder / "report.html", self.html(folder))

    def markdown(self) -> str:
        parts = [f"# {escape_markdown(self.title)}", *(part.markdown() for part in self.parts)]
        return "\n\n".join(parts) + "\n"

    def html(self, folder: Path, *, generator: str = "fastgrow", contents: bool = False) -> str:
        """The page.

        Args:
            folder: where the figures stand.
            generator: noted in the page as what made it.
            contents: put links to the sections at the top.
        """
        title = html.escape(self.title)
        parts = "\n".join(part.html(folder) for part in self.parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="generator" content="{html.escape(generator)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # Without it a browser asks the page's server for an icon.
            '<link rel="icon" href="data:,">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{self._contents() if contents else ''}{parts}\n</body>\n</html>\n"
        )

    def _contents(self) -> str:
        headings = [part for part in self.parts if isinstance(part, Heading) and part.level == 2]
        links = "".join(
            f'<a href="#{html.escape(h.anchor)}">{html.escape(h.text)}</a>' for h in headings
        )
        return f"<nav>{links}</nav>\n"

"""One report, written twice: Markdown for reading in a repository, one HTML file for a browser."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgrow import _files

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f3; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figcaption { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class _Heading:
    text: str


@dataclass(frozen=True)
class _Paragraph:
    text: str


@dataclass(frozen=True)
class _Points:
    items: Sequence[str]


@dataclass(frozen=True)
class _Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Figure:
    name: str
    caption: str


@dataclass(frozen=True)
class _Sample:
    text: str


_Part = _Heading | _Paragraph | _Points | _Table | _Figure | _Sample


@dataclass
class Report:
    """A report in the order in which its parts are added. All texts are plain, not markup."""

    title: str
    parts: list[_Part] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(_Heading(text))

    def paragraph(self, text: str) -> None:
        self.parts.append(_Paragraph(text))

    def points(self, items: Sequence[str]) -> None:
        self.parts.append(_Points(items))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.parts.append(_Table(header, rows))

    def figure(self, name: str, caption: str) -> None:
        """A PNG file that stands in the report's folder."""
        self.parts.append(_Figure(name, caption))

    def sample(self, text: str) -> None:
        """Text as a model wrote it, white space and all."""
        self.parts.append(_Sample(text))

    def write(self, folder: Path) -> None:
        """Write `report.md` and `report.html` (self-contained: figures are inside) to `folder`."""
        _files.write_text(folder / "report.md", self.markdown())
        _files.write_text(folder / "report.html", self.html(folder))

    def markdown(self) -> str:
        parts = [f"# {_escape_markdown(self.title)}", *map(_part_markdown, self.parts)]
        return "\n\n".join(parts) + "\n"

    def html(self, folder: Path) -> str:
        title = html.escape(self.title)
        parts = "\n".join(_part_html(part, folder) for part in self.parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{parts}\n</body>\n</html>\n"
        )


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest])

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def _part_markdown(part: _Part) -> str:
    match part:
        case _Heading(text):
            return f"## {_escape_markdown(text)}"
        case _Paragraph(text):
            return _escape_markdown(text)
        case _Points(items):
            return "\n".join(f"- {_escape_markdown(item)}" for item in items)
        case _Table(header, rows):
            lines = [_row(header), _row(["---", *["---:"] * (len(header) - 1)], escape=False)]
            return "\n".join([*lines, *map(_row, rows)])
        case _Figure(name, caption):
            return f"![{_escape_markdown(caption)}]({name})"
        case _Sample(text):
            # A fence longer than any run of backquotes inside cannot be closed by the sample.
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, 1 + longest)
            return f"{fence}text\n{text}\n{fence}"


def _part_html(part: _Part, folder: Path) -> str:
    match part:
        case _Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case _Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case _Points(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case _Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
                for row in rows
            )
            return (
                f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{body}</tbody>\n</table></div>"
            )
        case _Figure(name, caption):
            data = base64.b64encode((folder / name).read_bytes()).decode()
            text = html.escape(caption)
            return (
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        case _Sample(text):
            return f"<pre>{html.escape(text)}</pre>"


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(_escape_markdown(c) if escape else c for c in cells) + " |"


def _escape_markdown(text: str) -> str:
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return text

"""What a report is made of. Each part says the same in Markdown and in HTML; texts are plain."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Part(Protocol):
    """A piece of a report; kinds of its own may be added wherever they are needed."""

    def markdown(self) -> str: ...

    def html(self, folder: Path) -> str:
        """Markup; `folder` is where the files stand that the report names."""
        ...


@dataclass(frozen=True)
class Heading:
    """Of a section, or of a part of one."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.text.lower()).strip("-")

    def markdown(self) -> str:
        return f"{'#' * self.level} {escape_markdown(self.text)}"

    def html(self, folder: Path) -> str:
        place = f' id="{html.escape(self.anchor)}"' if self.level == 2 else ""
        return f"<h{self.level}{place}>{html.escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    """Prose."""

    text: str

    def markdown(self) -> str:
        return escape_markdown(self.text)

    def html(self, folder: Path) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Note:
    """What a reader must not miss, such as that something is missing."""

    text: str

    def markdown(self) -> str:
        return f"> {escape_markdown(self.text)}"

    def html(self, folder: Path) -> str:
        return f'<p class="note">{html.escape(self.text)}</p>'


@dataclass(frozen=True)
class Points:
    """A list."""

    items: Sequence[str]

    def markdown(self) -> str:
        return "\n".join(f"- {escape_markdown(item)}" for item in self.items)

    def html(self, folder: Path) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in self.items) + "</ul>"


@dataclass(frozen=True)
class Tiles:
    """The few numbers that sum a run up: (name, value) pairs."""

    items: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        return Points([f"{name}: {value}" for name, value in self.items]).markdown()

    def html(self, folder: Path) -> str:
        tiles = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in self.items
        )
        return f'<dl class="tiles">{tiles}</dl>'


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header.

    Attributes:
        header: the columns' names.
        rows: as many cells each.
        shades: 0 (none) to 1 for each cell behind a row's first; None shades nothing.
        words: cells are words, set to the left, not numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float]] | None = None
    words: bool = False

    def markdown(self) -> str:
        rule = "---" if self.words else "---:"
        lines = [_row(self.header), _row(["---", *[rule] * (len(self.header) - 1)], escape=False)]
        return "\n".join([*lines, *map(_row, self.rows)])

    def html(self, folder: Path) -> str:
        kind = ' class="text"' if self.words else ""
        head = "".join(f"<th{kind}>{html.escape(cell)}</th>" for cell in self.header)
        body = ""
        for i, row in enumerate(self.rows):
            styles = [""] * len(row)
            if self.shades is not None:
                styles[1:] = [_shade(strength) for strength in self.shades[i]]
            cells = zip(row, styles, strict=True)
            shown = (f"<td{kind}{style}>{html.escape(cell)}</td>" for cell, style in cells)
            body += f"<tr>{''.join(shown)}</tr>\n"
        return (
            f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}</tbody>\n</table></div>"
        )


@dataclass(frozen=True)
class Figure:
    """A PNG file in the report's folder."""

    name: str
    caption: str

    def markdown(self) -> str:
        return f"![{escape_markdown(self.caption)}]({self.name})"

    def html(self, folder: Path) -> str:
        data = base64.b64encode((folder / self.name).read_bytes()).decode()
        text = html.escape(self.caption)
        return (
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Sample:
    """Text as a model wrote it, white space and all.

    Attributes:
        text: the prompt and what follows.
        prompt: is marked at its beginning.
        label: what it is a sample of.
    """

    text: str
    prompt: str = ""
    label: str = ""

    def markdown(self) -> str:
        # A fence longer than any run of backquotes inside cannot be closed by the sample.
        longest = max(map(len, re.findall("`+", self.text)), default=0)
        fence = "`" * max(3, 1 + longest)
        label = f"{escape_markdown(self.label)}\n\n" if self.label else ""
        return f"{label}{fence}text\n{self.text}\n{fence}"

    def html(self, folder: Path) -> str:
        given = self.prompt if self.text.startswith(self.prompt) else ""
        mark = f"<mark>{html.escape(given)}</mark>" if given else ""
        label = f'<p class="label">{html.escape(self.label)}</p>' if self.label else ""
        return f"{label}<pre>{mark}{html.escape(self.text[len(given) :])}</pre>"


@dataclass(frozen=True)
class Row:
    """Parts side by side where the screen is wide enough."""

    parts: Sequence[Part]

    def markdown(self) -> str:
        return "\n\n".join(part.markdown() for part in self.parts)

    def html(self, folder: Path) -> str:
        return f'<div class="row">{"".join(part.html(folder) for part in self.parts)}</div>'


def escape_markdown(text: str) -> str:
    """`text` without anything that Markdown would take for a mark."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return text


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(escape_markdown(c) if escape else c for c in cells) + " |"


def _shade(strength: float) -> str:
    # Transparent, so that ink stays readable on it in either colour scheme.
    return f' style="background: hsl(205 85% 50% / {0.55 * strength:.2f})"'

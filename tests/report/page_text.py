"""The text of a page, read without a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_EMPTY = {"meta", "link", "br", "img"}


class PageText(HTMLParser):
    """The tags, headings, notes and words of a page. Checks that the tags are balanced."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.notes: list[str] = []
        self.cells: list[str] = []
        self.words = ""
        self._open: list[tuple[str, str]] = []
        self.source = page.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {name: value or "" for name, value in attrs}
        self.attributes += list(named.items())
        if tag not in _EMPTY:
            self._open.append((tag, named.get("class", "")))
            self._list_of(tag, named.get("class", "")).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        self.words += data
        for tag, kind in self._open:
            pieces = self._list_of(tag, kind)
            if pieces:
                pieces[-1] += data

    def _list_of(self, tag: str, kind: str) -> list[str]:
        if tag == "h2":
            return self.headings
        if tag == "p" and kind == "note":
            return self.notes
        return self.cells if tag == "td" else []

"""Tables and progress on a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from fastgrow import _terminal

HEADER, ROWS = ["run", "bits"], [["grown [b]", "2.5"], ["monolith", "10.25"]]
TABLE = """\
run         bits
---------- -----
grown [b]    2.5
monolith   10.25"""
SHOW = f"""
from fastgrow import _terminal
_terminal.show("[red]title", _terminal.table({HEADER}, {ROWS}), "w" * 300)
with _terminal.progress("task") as update:
    update(3, 4)
"""


def test_a_table_as_text() -> None:
    assert _terminal.table_text(HEADER, ROWS) == TABLE
    words = _terminal.table_text(["part", ""], [["a", "b c"], ["aaa", "d"]], numbers=False)
    assert words.splitlines() == ["part", "----- ---", "a     b c", "aaa   d"]


@pytest.mark.parametrize("columns", ["20", "200"])
def test_a_pipe_gets_whole_lines_without_codes(columns: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": columns, "TERM": "xterm"},
    )
    assert done.stdout == f"[red]title\n{TABLE}\n{'w' * 300}\n"
    assert done.stderr == ""


def test_a_terminal_gets_a_bold_header_and_a_bar() -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SHOW],
        check=True,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm"},
    )
    written = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "\x1b[1mrun" in written
    assert "w" * 300 in written
    assert "3/4" in written


def test_rich_is_imported_only_to_draw() -> None:
    code = "import sys, fastgrow._terminal; print([m for m in sys.modules if 'rich' in m])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_lines_are_rewritten_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert _terminal.can_rewrite(Terminal())
    assert not _terminal.can_rewrite(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not _terminal.can_rewrite(Terminal())

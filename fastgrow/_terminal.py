"""Tables and progress on a terminal, drawn by Rich, in one style for all commands.

Rich is imported by the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

# Wider than any table: a line is never cut or folded, neither in a pipe nor on a narrow terminal.
_WIDTH = 10_000
# A rule of ASCII dashes below the header, two spaces between columns.
_BOX = "    \n    \n -  \n    \n    \n    \n    \n    \n"


def console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """Return a console that writes texts unchanged.

    Style codes are written to a terminal only. `NO_COLOR` and `TERM=dumb` are honoured.

    Args:
        stream: where to write; None selects standard output.
        width: columns of a line; None selects the width of the terminal.
    """
    from rich.console import Console

    return Console(
        file=stream, width=width, markup=False, emoji=False, highlight=False, force_jupyter=False
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Table:
    """Return a table for `show`.

    Args:
        header: the names of the columns.
        rows: the cells, as many in each row as in the header.
        numbers: align all columns but the first to the right.
    """
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=Box(_BOX, ascii=True), padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for index, name in enumerate(header):
        right = numbers and index > 0
        made.add_column(Text(name), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def show(*parts: str | Table) -> None:
    """Print texts and tables to standard output, each on separate lines."""
    console(width=_WIDTH).print(*parts, sep="\n", soft_wrap=True)


def table_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> str:
    """Return a table as plain text, without style codes. The arguments are those of `table`."""
    text = io.StringIO()
    console(text, width=_WIDTH).print(table(header, rows, numbers=numbers), soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def can_rewrite(stream: TextIO) -> bool:
    """Whether lines can be rewritten in place: the stream is a terminal, and not a dumb one."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def live_line(stream: TextIO) -> Live:
    """Return a display that rewrites its text in place and removes it when it is stopped.

    Args:
        stream: a terminal, see `can_rewrite`.
    """
    from rich.live import Live

    return Live(
        console=console(stream),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if that is a terminal, else nothing.

    Args:
        title: text at the left of the bar.

    Returns:
        A context manager for a function of the number of steps done and of all steps.
    """
    if not can_rewrite(sys.stderr):
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(sys.stderr),
    ) as display:
        task = display.add_task(title, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)

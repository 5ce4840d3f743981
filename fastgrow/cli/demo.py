"""`fastgrow demo`: grow, compose and report, from beginning to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastgrow.cli import resumable


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, given as NAME=VALUE, such as tokens=50_000."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, model and report.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Run a smaller demo that takes less than a minute.")
    ] = False,
) -> None:
    """Grow three small models, compose them, and write a report.

    The models are trained on Latin, Cyrillic and Chinese text that is part of the package. The same
    command run again resumes where it stopped.
    """
    with resumable():
        from fastgrow.cli.settings import read_demo
        from fastgrow.demo import run_demo

        run_demo(read_demo("demo-quick" if quick else "demo", overrides or []), out)

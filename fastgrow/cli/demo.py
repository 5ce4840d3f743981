"""`fastgrow demo`: the main job end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, model and report.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller one, under a minute.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
) -> None:
    """Grow three specialists (Latin, Cyrillic, Han), compose them, and write a report."""
    from dataclasses import replace

    from fastgrow.demo import FULL, QUICK, run_demo

    run_demo(replace(QUICK if quick else FULL, seed=seed), out)

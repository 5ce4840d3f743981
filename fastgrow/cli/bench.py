"""`fastgrow bench`: run the benchmark suite on this machine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    context: typer.Context,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Measure one shape of each operation; about a minute."),
    ] = False,
) -> None:
    """Benchmark fastgrow's operations against PyTorch.

    It measures time and memory of fastgrow, eager PyTorch and torch.compile, and accepts all
    arguments of `python -m benchmarks`, such as `--op attention --dtype bf16`, `gpu --out DIR` or
    `report FILE`. The suite is part of the repository, not of the installed package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "command.py").is_file():
        from fastgrow.errors import ConfigError

        raise ConfigError(
            "the benchmark suite is not installed with the package: clone the repository, and run "
            "`fastgrow bench` from an editable install of it (pip install --no-build-isolation -e "
            ".) or `python -m benchmarks` in its root folder"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    command = importlib.import_module("benchmarks.command")
    arguments = [*context.args, *(["--quick"] if quick else [])]
    raise typer.Exit(command.main(arguments, "fastgrow bench"))

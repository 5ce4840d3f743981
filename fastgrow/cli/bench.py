"""`fastgrow bench`: the benchmark suite on this machine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="One shape of each operation, in a minute.")
    ] = False,
) -> None:
    """Time and memory of fastgrow's operations beside eager PyTorch and torch.compile, here.

    Everything that `python -m benchmarks` takes may follow, such as `--op attention --dtype bf16`,
    `gpu --out DIR` or `report FILE`. The suite stands in the repository, not in the package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "command.py").is_file():
        from fastgrow.errors import ConfigError

        raise ConfigError(
            "the benchmark suite is not installed with the package: get the repository, and run "
            "`fastgrow bench` from an editable install of it (pip install --no-build-isolation -e "
            ".) or `python -m benchmarks` at its top"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    command = importlib.import_module("benchmarks.command")
    arguments = [*context.args, *(["--quick"] if quick else [])]
    raise typer.Exit(command.main(arguments, "fastgrow bench"))

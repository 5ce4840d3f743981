"""`fastgrow study`: trainings, controls and compositions over seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fastgrow.cli import resumable


def study(
    config: Annotated[
        str,
        typer.Argument(help="A study's YAML or TOML file, or the name of a shipped study."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, such as train.lr=1e-3.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the texts; else FASTGROW_DATA, or where the file is."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; else runs/study-NAME.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of the study's: 1,2,3.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at once, each of one thread.")] = 1,
    only: Annotated[
        str | None, typer.Option(help="Run these trainings and ensembles alone: name,name.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing; report what is finished.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on in a folder of a study of other settings.")
    ] = False,
    table: Annotated[
        str | None,
        typer.Option(
            help="Print a table of results: bits, rules, depth, difference, cost, budget, fitted."
        ),
    ] = None,
    rules: Annotated[
        str | None, typer.Option(help="With --table bits: only these rules, such as mean,top-1.")
    ] = None,
) -> None:
    """Run a study; the same command again goes on where it stopped.

    With --table, the argument is a results.json or the folder that holds it, and one of its tables
    is printed as Markdown.
    """
    if table is not None:
        typer.echo(_table(Path(config), table, rules), nl=False)
        return
    with resumable():
        from fastgrow.cli.settings import read_study
        from fastgrow.study import run_study

        path, settings = read_study(config, overrides or [])
        run_study(
            settings,
            out or Path("runs") / f"study-{settings.name}",
            folders=[*_folders(data), path.parent],
            seeds=None if seeds is None else _numbers(seeds),
            jobs=jobs,
            only=None if only is None else only.split(","),
            run=not report,
            extend=extend,
        )


def _folders(data: Path | None) -> list[Path]:
    """The data folder, and its corpora; none where it was not given."""
    folder = os.environ.get("FASTGROW_DATA")
    if data is None and folder:
        data = Path(folder)
    return [] if data is None else [data, data / "corpora"]


def _table(path: Path, name: str, rules: str | None) -> str:
    from fastgrow.errors import ConfigError
    from fastgrow.study.results import read_results
    from fastgrow.study.tables import TABLES, bits_table, markdown

    if name not in TABLES:
        raise ConfigError(f"--table: expected one of {', '.join(TABLES)}, got {name!r}")
    results = read_results(path)
    if name == "difference" and "reference" not in results["settings"]:
        raise ConfigError("--table: the study names no reference for the table of differences")
    if rules is None:
        return markdown(TABLES[name](results))
    if name != "bits":
        raise ConfigError(f"--rules: goes with --table bits, got --table {name}")
    return markdown(bits_table(results, rules.split(",")))


def _numbers(text: str) -> list[int]:
    from fastgrow.errors import ConfigError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: expected numbers such as 1,2,3, got {text!r}") from None

"""`fastgrow study`: run trainings, controls and compositions over several seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fastgrow.cli import resumable


def study(
    config: Annotated[
        str,
        typer.Argument(
            help="A study's YAML or TOML file, or the name of a shipped study; with --table, a "
            "results.json or its folder."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, given as NAME=VALUE, such as train.lr=1e-3."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the texts; by default the environment variable FASTGROW_DATA, or the "
            "folder of the study's file."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the study; by default runs/study-NAME.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Random seeds to use instead of the study's, such as 1,2,3."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Number of processes to run in parallel, each with one thread.")
    ] = 1,
    only: Annotated[
        str | None,
        typer.Option(help="Run only these trainings and ensembles, given as NAME,NAME."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Run nothing; write the report of what is finished."),
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Continue in a folder whose study had other settings, and keep its finished runs.",
        ),
    ] = False,
    table: Annotated[
        str | None,
        typer.Option(
            help="Print a table of results and stop: bits, rules, depth, difference, cost, budget "
            "or fitted."
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="With --table bits: only show these rules, such as mean,top-1."),
    ] = None,
) -> None:
    """Train models with several random seeds, and compare them.

    A study also combines models into ensembles. The same command run again resumes where it
    stopped. With --table, nothing is run; the first argument is a results.json or its folder, and
    one of its tables is printed as Markdown.
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
    """Return the data folder and its subfolder `corpora`; nothing if no data folder is given."""
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
        raise ConfigError(
            "--table difference: compares with the study's reference, and the study's settings "
            "name none"
        )
    if rules is None:
        return markdown(TABLES[name](results))
    if name != "bits":
        raise ConfigError(f"--rules: can only be used with --table bits, got --table {name}")
    return markdown(bits_table(results, rules.split(",")))


def _numbers(text: str) -> list[int]:
    from fastgrow.errors import ConfigError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: expected numbers such as 1,2,3, got {text!r}") from None

"""`fastgrow report`: write an HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a growth run, a demo, a saved model or an ensemble.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write; by default report.html in a run's folder, page.html in a "
            "demo's, and NAME-report.html next to the folder NAME of a model."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to colour by the expert that predicts each token best; by default part of "
            "the test text."
        ),
    ] = None,
    neighbours: Annotated[
        str | None,
        typer.Option(help="Characters whose nearest neighbours in the token table are shown."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the generated samples.")] = 0,
    records_only: Annotated[
        bool,
        typer.Option("--records-only", help="Show curves and tables only; load no model."),
    ] = False,
) -> None:
    """Write an HTML report of a run, a demo or a model.

    The report is one self-contained file with curves, tables and text samples.
    """
    from fastgrow.info import device
    from fastgrow.report import PageOptions, write_page

    options = PageOptions(text, neighbours, seed, device(), not records_only)
    typer.echo(f"{write_page(folder, out, options=options)}")

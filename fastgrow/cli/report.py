"""`fastgrow report`: a look inside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a growth run, a demo, or a saved or composed model.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; else report.html in a run, page.html in a demo."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A text to divide among the experts; else test text.")
    ] = None,
    neighbours: Annotated[
        str | None, typer.Option(help="Characters whose nearest glyphs are shown.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    records_only: Annotated[
        bool, typer.Option("--records-only", help="Load no model: curves and tables alone.")
    ] = False,
) -> None:
    """Make one self-contained HTML page of whatever a run's folder holds."""
    from fastgrow.info import device
    from fastgrow.report import PageOptions, write_page

    options = PageOptions(text, neighbours, seed, device(), not records_only)
    typer.echo(f"{write_page(folder, out, options=options)}")

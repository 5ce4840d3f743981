"""`fastgrow data`: text into token files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Prepare and inspect token files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `prepare` a command of its own: typer folds a group of one into the group."""


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A text, JSONL or Parquet file, a folder, or OWNER/NAME on the Hub."),
    ],
    substrate: Annotated[Path, typer.Option(help="Folder of a saved substrate.")],
    out: Annotated[Path, typer.Option(help="Folder for the token files.")] = Path("runs/tokens"),
    text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(help="Seed of the split by document.")] = 0,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a Hub dataset without storing it.")
    ] = False,
) -> None:
    """Tokenize a corpus, split by document, and print what it holds."""
    from fastgrow import _terminal
    from fastgrow.cli.settings import SourceSettings
    from fastgrow.substrate import Substrate
    from fastgrow.training import TextData

    opened = SourceSettings(source, config=config, streaming=streaming).open()
    data = TextData(
        opened, Substrate.load(substrate), seed=seed, cache_dir=out, text_field=text_field
    )
    rows = [
        [name, f"{s.n_documents:,}", f"{len(s.ids):,}", f"{s.n_characters:,}"]
        for name, s in (
            ("train", data.train),
            ("validation", data.validation),
            ("test", data.test),
        )
    ]
    _terminal.show(_terminal.table(["split", "documents", "tokens", "characters"], rows))

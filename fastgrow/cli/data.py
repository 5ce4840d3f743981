"""`fastgrow data`: tokenize text into files of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Tokenize a corpus ahead of training.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `prepare` as a subcommand: typer merges a group's only command into the group."""


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A text, JSONL or Parquet file, a folder of such files, or OWNER/NAME of a "
            "dataset on the Hugging Face Hub."
        ),
    ],
    substrate: Annotated[
        Path, typer.Option(help="Folder of a saved substrate, which holds the tokenizer.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the token files.")] = Path("runs/tokens"),
    text_field: Annotated[
        str, typer.Option(help="JSON field or table column that holds the text.")
    ] = "text",
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed of the split of documents into training, validation and test data."
        ),
    ] = 0,
    config: Annotated[
        str | None, typer.Option(help="Name of the configuration of a Hub dataset.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Stream a Hub dataset without storing it on disk.")
    ] = False,
) -> None:
    """Tokenize a corpus and split it by document.

    It prints the size of each split. `fastgrow grow` tokenizes its data as well if necessary; this
    command does it ahead of training.
    """
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

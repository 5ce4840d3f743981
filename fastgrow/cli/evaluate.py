"""`fastgrow evaluate`: bits per character of a model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model, run or composed model.")],
    texts: Annotated[list[Path], typer.Argument(help="Text files, one document a line.")],
    batch_size: Annotated[int, typer.Option(help="Windows evaluated at once.")] = 16,
) -> None:
    """Print bits per character on each text, whole and unsplit."""
    import fastgrow
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError
    from fastgrow.report import table_text
    from fastgrow.training import TextData

    loaded = load_model(model)
    if loaded.substrate is None:
        raise ConfigError(f"{model}: has no substrate, so it cannot read text")
    rows = []
    for path in texts:
        data = TextData(path, loaded.substrate, split=(1.0, 0.0, 0.0))
        bits = fastgrow.bits_per_character(loaded, data.train, batch_size=batch_size)
        rows.append([str(path), f"{bits.bits_per_character:.4f}", f"{bits.characters:,}"])
    typer.echo(table_text(["text", "bits per character", "characters"], rows))

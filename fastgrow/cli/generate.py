"""`fastgrow generate`: continue a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a model, run or composed model.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample within that probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
) -> None:
    """Print the prompt and its continuation as it comes."""
    from fastgrow.cli.models import load_model

    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    pieces = load_model(model).stream(prompt, max_new_tokens=max_new_tokens, **options)
    # The prompt is printed once the first piece is there, so that an error stands alone.
    typer.echo(prompt + next(pieces, ""), nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()

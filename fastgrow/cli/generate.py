"""`fastgrow generate`: continue a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a model, of a run or of an ensemble.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 decodes greedily.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the k most likely tokens only.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the most likely tokens whose probabilities sum to this value "
            "(nucleus sampling)."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed generates the same text.")
    ] = None,
) -> None:
    """Continue a prompt with text from a model."""
    from fastgrow.cli.models import load_model

    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    pieces = load_model(model).stream(prompt, max_new_tokens=max_new_tokens, **options)
    # The prompt is printed together with the first piece, so that an error is printed alone.
    typer.echo(prompt + next(pieces, ""), nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()

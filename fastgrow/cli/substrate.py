"""`fastgrow substrate`: draw, inspect and show substrates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Draw, inspect and show substrates. A substrate is the frozen vocabulary, tokenizer and "
    "token table of a model.",
    no_args_is_help=True,
)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to save the substrate in.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="How to choose the vocabulary: default, bvv241-2-3, bvv241-max or bvv241-abs."
        ),
    ] = "default",
    ngrams: Annotated[
        str | None, typer.Option(help="File or folder of the n-gram lists of a bvv241 recipe.")
    ] = None,
    script: Annotated[
        list[str] | None,
        typer.Option(help="Include only characters of this Unicode script; can be repeated."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="Include only characters of this Unicode block; can be repeated."),
    ] = None,
    characters: Annotated[str | None, typer.Option(help="Include only these characters.")] = None,
    n_components: Annotated[
        int | None, typer.Option(help="Width of the token table (number of PCA components).")
    ] = None,
    newline: Annotated[
        str,
        typer.Option(
            help="How to draw the newline: blank (as in the papers, where it looks like a space) "
            "or glyph."
        ),
    ] = "blank",
    font: Annotated[
        str | None, typer.Option(help="TTF, OTF or BDF font file to draw the glyphs with.")
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(help="Use these token codes instead of glyphs, such as id-16."),
    ] = None,
) -> None:
    """Draw a substrate and save it."""
    from fastgrow.cli.config import typed
    from fastgrow.cli.settings import SubstrateSettings

    options = {
        "recipe": recipe,
        "ngrams": ngrams,
        "scripts": script,
        "blocks": block,
        "characters": characters,
        "n_components": n_components,
        "newline": newline,
        "font": font,
        "codes": codes,
    }
    built = typed(options, SubstrateSettings, "options").build()
    built.save(out)
    typer.echo(f"{out}: {len(built)} tokens, fingerprint {built.fingerprint}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of a saved substrate or model.")],
) -> None:
    """Print facts about a substrate.

    These are its size, its fingerprint, and which tokens have the same vector.
    """
    from fastgrow.substrate import Substrate

    loaded = Substrate.load(path)
    typer.echo(f"tokens: {len(loaded)}\ntable width: {loaded.n_embed}")
    typer.echo(f"fingerprint: {loaded.fingerprint}")
    typer.echo(loaded.describe_collisions(limit=20))


@app.command()
def show(
    text: Annotated[str, typer.Argument(help="The characters to draw.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("glyphs.png"),
    path: Annotated[
        Path | None,
        typer.Option(
            "--substrate", help="Folder of a saved substrate; by default one is drawn for the text."
        ),
    ] = None,
) -> None:
    """Draw the glyph bitmaps of a text as a PNG file."""
    from fastgrow.substrate import Substrate
    from fastgrow.substrate.picture import glyph_sheet

    substrate = Substrate.build(characters=text) if path is None else Substrate.load(path)
    glyph_sheet(substrate, text, out)
    typer.echo(str(out))

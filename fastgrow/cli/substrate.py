"""`fastgrow substrate`: draw, inspect and show frozen substrates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Draw, inspect and show frozen substrates.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to save it in.")],
    recipe: Annotated[str, typer.Option(help="default, bvv241-2-3 or bvv241-abs.")] = "default",
    ngrams: Annotated[str | None, typer.Option(help="The n-gram lists of a bvv recipe.")] = None,
    script: Annotated[
        list[str] | None, typer.Option(help="Only this Unicode script; may be repeated.")
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="Only this Unicode block; may be repeated.")
    ] = None,
    characters: Annotated[str | None, typer.Option(help="Only these characters.")] = None,
    n_components: Annotated[int | None, typer.Option(help="Width of the table.")] = None,
    newline: Annotated[
        str, typer.Option(help="blank, as the author draws it, or glyph, unlike a space.")
    ] = "blank",
    font: Annotated[str | None, typer.Option(help="Draw with this TTF, OTF or BDF.")] = None,
    codes: Annotated[
        str | None, typer.Option(help="Token codes in place of glyphs, such as id-16.")
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
    """Print size, fingerprint, and which tokens look the same to a model."""
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
        Path | None, typer.Option("--substrate", help="Folder of a saved one; else the default.")
    ] = None,
) -> None:
    """Draw the glyphs of a text as a model sees them."""
    from fastgrow.substrate import Substrate
    from fastgrow.substrate.picture import glyph_sheet

    substrate = Substrate.build(characters=text) if path is None else Substrate.load(path)
    glyph_sheet(substrate, text, out)
    typer.echo(str(out))

"""`fastgrow inspect`: which expert supports which token of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[Path, typer.Argument(help="Folder of a composed model.")],
    text: Annotated[str, typer.Argument(help="A text.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("runs/support.html"),
) -> None:
    """Colour a text by the expert that supports each token, and print each expert's bits."""
    from fastgrow import _terminal
    from fastgrow.cli.models import load_model
    from fastgrow.compose import Ensemble, token_support
    from fastgrow.errors import ConfigError
    from fastgrow.report import write_heat_strip

    ensemble = load_model(model)
    if not isinstance(ensemble, Ensemble):
        raise ConfigError(f"{model}: is one model, not a composed one; there are no experts")
    supports = token_support(ensemble, text)
    write_heat_strip(supports, out, title=f"Who supports what: {', '.join(ensemble.names)}")
    rows = [
        [name, f"{sum(s.bits[name] for s in supports) / len(supports):.3f}"]
        for name in ensemble.names
    ]
    rows.append(["together", f"{sum(s.merged_bits for s in supports) / len(supports):.3f}"])
    _terminal.show(_terminal.table(["expert", "bits a token"], rows))
    typer.echo(f"{out}")

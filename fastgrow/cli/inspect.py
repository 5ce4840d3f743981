"""`fastgrow inspect`: show which expert predicts each token of a text best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[Path, typer.Argument(help="Folder of an ensemble.")],
    text: Annotated[str, typer.Argument(help="The text itself, not a file.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("runs/support.html"),
) -> None:
    """Show which expert predicts each token of a text best.

    It writes an HTML page with the coloured text, and prints the bits per token of each expert and
    of the ensemble.
    """
    from fastgrow import _terminal
    from fastgrow.cli.models import load_model
    from fastgrow.compose import Ensemble, token_support
    from fastgrow.errors import ConfigError
    from fastgrow.report import write_heat_strip

    ensemble = load_model(model)
    if not isinstance(ensemble, Ensemble):
        raise ConfigError(
            f"{model}: expected the folder of an ensemble, found that of a single model, which has "
            "no experts"
        )
    supports = token_support(ensemble, text)
    write_heat_strip(supports, out, title=f"Who supports what: {', '.join(ensemble.names)}")
    rows = [
        [name, f"{sum(s.bits[name] for s in supports) / len(supports):.3f}"]
        for name in ensemble.names
    ]
    rows.append(["ensemble", f"{sum(s.merged_bits for s in supports) / len(supports):.3f}"])
    _terminal.show(_terminal.table(["expert", "bits per token"], rows))
    typer.echo(f"{out}")

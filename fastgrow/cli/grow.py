"""`fastgrow grow`: train one growth run from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastgrow.cli import resumable

if TYPE_CHECKING:
    from fastgrow.growth import GrowthResult


def grow(
    config: Annotated[
        str, typer.Argument(help="A YAML or TOML file, or the name of a shipped configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, given as NAME=VALUE, such as train.lr=1e-3."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; by default the configuration's `out`."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="Train a control for comparison instead: monolith (all blocks from the beginning) "
            "or never-grown (the starting depth, for all tokens)."
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Report an error if the folder already holds a run, instead of resuming it.",
        ),
    ] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="Finish the run in the folder early, whether it is running or stopped: start the "
            "learning-rate decay now, and end after it at the present depth.",
        ),
    ] = False,
) -> None:
    """Grow a model stage by stage.

    Each stage inserts blocks, trains some of the blocks, and freezes the others. The same command
    run again resumes where it stopped.
    """
    with resumable():
        result = _grow(config, overrides or [], out, control, fresh, finish)
    if result is None:
        return
    for stage in result.stages:
        bits = ", ".join(f"{name} {value:.3f}" for name, value in stage.bits.items())
        typer.echo(f"stage {stage.stage}: depth {stage.depth}, bits per character: {bits}")
    assert result.out is not None
    typer.echo(f"model: {result.out / 'model'}")


def _grow(
    config: str,
    overrides: list[str],
    out: Path | None,
    control: str | None,
    fresh: bool,
    finish: bool,
) -> GrowthResult | None:
    import torch

    import fastgrow
    from fastgrow.cli import settings
    from fastgrow.errors import ConfigError
    from fastgrow.growth.folder import request_finish
    from fastgrow.info import device

    run = settings.read_growth(config, overrides)
    folder = out or Path(run.out)
    if finish:
        if fresh:
            raise ConfigError(
                "--finish and --fresh cannot be combined: --finish continues an existing run, "
                "--fresh rejects one"
            )
        if request_finish(folder):
            typer.echo(
                f"{folder}: the running process starts its learning-rate decay after the current "
                "step, and ends after the decay at its present depth"
            )
            return None
    schedule = run.schedule
    if control == "monolith":
        schedule = schedule.as_monolith()
    elif control == "never-grown":
        schedule = schedule.as_never_grown()
    elif control is not None:
        raise ConfigError(f"--control: expected monolith or never-grown, got {control!r}")
    substrate = run.substrate.build()
    model_config = run.model_config(substrate)
    data = run.open_data(substrate)
    torch.manual_seed(run.train.seed)
    return fastgrow.grow(
        fastgrow.Decoder(model_config, substrate).to(device()),
        data,
        schedule,
        train=run.train,
        out=folder,
        resume="never" if fresh else "auto",
        trunk=run.trunk,
        finish=finish,
    )

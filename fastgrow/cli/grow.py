"""`fastgrow grow`: one growth run from a configuration file."""

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
        list[str] | None, typer.Argument(help="Settings to change, such as train.lr=1e-3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; else the file's.")] = None,
    control: Annotated[
        str | None, typer.Option(help="Train a control instead: monolith or never-grown.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a folder that holds a run; else go on with it.")
    ] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="Let the run in the folder, running or stopped, decay now and end."
        ),
    ] = False,
) -> None:
    """Grow a model stage by stage. The same command again resumes where it stopped."""
    with resumable():
        result = _grow(config, overrides or [], out, control, fresh, finish)
    if result is None:
        return
    for stage in result.stages:
        bits = ", ".join(f"{name} {value:.3f}" for name, value in stage.bits.items())
        typer.echo(f"stage {stage.stage}: depth {stage.depth}, bits a character: {bits}")
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
    from fastgrow.growth.folder import ask_to_finish
    from fastgrow.info import device

    run = settings.read_growth(config, overrides)
    folder = out or Path(run.out)
    if finish:
        if fresh:
            raise ConfigError("--finish: goes on with a run, and --fresh refuses one; give one")
        if ask_to_finish(folder):
            typer.echo(
                f"{folder}: the running process begins its decay after its present step, and ends "
                "with it at the depth that it has"
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

"""`fastgrow doctor`: check a growth run's stages on its own model, data and settings."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastgrow import _terminal

if TYPE_CHECKING:
    from rich.table import Table

    from fastgrow.growth.doctor import Diagnosis


def doctor(
    config: Annotated[
        str, typer.Argument(help="A YAML or TOML file, or the name of a shipped configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, given as NAME=VALUE, such as train.lr=1e-3."),
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="Use random text and a narrow model with the same stages. This is the default if "
            "the data cannot be opened.",
        ),
    ] = False,
    steps: Annotated[int, typer.Option(help="Training steps in each stage, at least 2.")] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON instead of a table.")
    ] = False,
) -> None:
    """Check a growth run by training each stage for a few steps.

    It checks, for example, that every active parameter changes, that frozen parameters do not, and
    that a stopped run resumes with the same result. It writes to a temporary folder only. The exit
    status is 1 if a check fails.
    """
    diagnosis = _diagnose(config, overrides or [], synthetic, steps)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        _terminal.show(*diagnosis_parts(diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _diagnose(config: str, overrides: list[str], synthetic: bool, steps: int) -> Diagnosis:
    import torch

    from fastgrow import Decoder
    from fastgrow.cli.examined import read_examined
    from fastgrow.growth.doctor import diagnose
    from fastgrow.info import device

    with tempfile.TemporaryDirectory(prefix="fastgrow-doctor-") as folder:
        run = read_examined(config, overrides, Path(folder), synthetic=synthetic)
        torch.manual_seed(run.train.seed)
        model = Decoder(run.config, run.substrate).to(device())
        return diagnose(
            model,
            run.data,
            run.schedule,
            run.train,
            steps=steps,
            notes=run.notes,
            trunk=run.trunk,
        )


def diagnosis_parts(diagnosis: Diagnosis) -> list[str | Table]:
    """Return a table of checks by stages, followed by the details of failed checks."""
    from fastgrow.growth.doctor import CHECKS

    words = {True: "ok", False: "FAILED", None: "-"}
    found = {(f.check, f.stage): words[f.ok] for f in diagnosis.findings}
    stages = sorted({stage for _, stage in found})
    rows = [[check, *(found.get((check, stage), "") for stage in stages)] for check in CHECKS]
    table = _terminal.table(["check", *(f"stage {s}" for s in stages)], rows)
    parts: list[str | Table] = [*diagnosis.notes, "", table, ""]
    for finding in diagnosis.findings:
        if finding.ok and finding.detail:
            parts.append(f"stage {finding.stage}, {finding.check}: {finding.detail}")
    for failure in diagnosis.failures:
        parts.append(f"stage {failure.stage}, {failure.check}: {failure.detail}")
        parts.append(f"  expected: {CHECKS[failure.check]}")
    return [*parts, "all checks hold"] if diagnosis.healthy else parts

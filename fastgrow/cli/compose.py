"""`fastgrow compose`: several models become one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastgrow.compose import Rule


def compose(
    experts: Annotated[
        list[str], typer.Argument(help="Folders of models or runs, each as PATH or NAME=PATH.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the composed model.")],
    rule: Annotated[
        str, typer.Option(help="mean, probability-mean, posterior, or weighted.")
    ] = "mean",
    weights: Annotated[
        str | None, typer.Option(help="For weighted, in the experts' order: 0.6,0.4")
    ] = None,
) -> None:
    """Compose models that share a substrate into one, without any training."""
    import fastgrow
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError

    paths: dict[str, str] = {}
    for expert in experts:
        name, equals, path = expert.partition("=")
        if not equals:
            # runs/ru/model is the expert "ru": the folder that grow writes is always called model.
            folder = Path(expert).resolve()
            name, path = (folder.parent if folder.name == "model" else folder).name, expert
        if name in paths:
            raise ConfigError(f"{expert}: a second expert of the name {name!r}; use NAME=PATH")
        paths[name] = path
    chosen = _rule(rule, weights, list(paths))
    models = {name: load_model(path) for name, path in paths.items()}
    fastgrow.Ensemble(models, rule=chosen).save(out)
    typer.echo(f"{out}: {len(models)} experts ({', '.join(models)}) under {rule}")


def _rule(rule: str, weights: str | None, names: list[str]) -> Rule:
    import fastgrow
    from fastgrow.errors import ConfigError

    if (weights is not None) != (rule == "weighted"):
        raise ConfigError("--weights goes with --rule weighted, and that rule needs it")
    if weights is not None:
        try:
            values = [float(value) for value in weights.split(",")]
        except ValueError:
            raise ConfigError(
                f"--weights: expected numbers like 0.6,0.4, got {weights!r}"
            ) from None
        if len(values) != len(names):
            raise ConfigError(f"--weights: expected {len(names)} numbers, got {len(values)}")
        return fastgrow.Weighted(dict(zip(names, values, strict=True)))
    rules: dict[str, type[Rule]] = {
        "mean": fastgrow.Mean,
        "probability-mean": fastgrow.ProbabilityMean,
        "posterior": fastgrow.Posterior,
    }
    if rule not in rules:
        raise ConfigError(f"--rule: expected {', '.join(rules)} or weighted, got {rule!r}")
    return rules[rule]()

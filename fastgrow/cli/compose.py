"""`fastgrow compose`: several models become one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastgrow.compose import Rule


def compose(
    experts: Annotated[
        list[str], typer.Argument(help="Folders of models or runs, each as PATH or NAME=PATH.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the composed model.")],
    rule: Annotated[
        str,
        typer.Option(
            help="mean, weighted, temperature, contrast, probability-mean, posterior or top-k."
        ),
    ] = "mean",
    weights: Annotated[
        str | None, typer.Option(help="In the experts' order: 0.6,0.4; prior weights too.")
    ] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="For temperature, in the experts' order: 1,1.5")
    ] = None,
    against: Annotated[str | None, typer.Option(help="For contrast, an expert's name.")] = None,
    strength: Annotated[float | None, typer.Option(help="For contrast, at least 0.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="For top-k, experts a token.")] = None,
    forgetting: Annotated[
        float | None, typer.Option(help="For posterior and top-k, above 0 and to 1.")
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
    options = {
        "weights": _by_name("--weights", weights, list(paths)),
        "temperatures": _by_name("--temperatures", temperatures, list(paths)),
        "against": against,
        "strength": strength,
        "k": k,
        "forgetting": forgetting,
    }
    chosen = _rule(rule, {name: value for name, value in options.items() if value is not None})
    models = {name: load_model(path) for name, path in paths.items()}
    fastgrow.Ensemble(models, rule=chosen).save(out)
    typer.echo(f"{out}: {len(models)} experts ({', '.join(models)}) under {rule}")


# What each rule needs, and what it may have.
_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mean": ((), ()),
    "weighted": (("weights",), ()),
    "temperature": (("temperatures",), ("weights",)),
    "contrast": (("against",), ("strength",)),
    "probability-mean": ((), ("weights",)),
    "posterior": ((), ("weights", "forgetting")),
    "top-k": (("k",), ("weights", "forgetting")),
}


def _rule(name: str, options: dict[str, Any]) -> Rule:
    from fastgrow.compose import Rule
    from fastgrow.errors import ConfigError

    if name not in _OPTIONS:
        raise ConfigError(f"--rule: expected one of {', '.join(_OPTIONS)}, got {name!r}")
    needed, allowed = _OPTIONS[name]
    for option in needed:
        if option not in options:
            raise ConfigError(f"--rule {name} needs --{option}")
    for option in options:
        if option not in needed + allowed:
            takers = [rule for rule, (a, b) in _OPTIONS.items() if option in a + b]
            raise ConfigError(f"--{option} goes with --rule {' or '.join(takers)}, not {name}")
    return Rule.from_config({"kind": name.replace("-", "_"), **options})


def _by_name(option: str, text: str | None, names: list[str]) -> dict[str, float] | None:
    """Numbers in the experts' order."""
    from fastgrow.errors import ConfigError

    if text is None:
        return None
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: expected numbers like 0.6,0.4, got {text!r}") from None
    if len(values) != len(names):
        raise ConfigError(f"{option}: expected {len(names)} numbers, got {len(values)}")
    return dict(zip(names, values, strict=True))

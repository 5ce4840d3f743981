"""`fastgrow compose`: several models become one, are tuned as one, or are distilled into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fastgrow.compose import Ensemble, Rule
    from fastgrow.training import TextData, TrainConfig


class _Group(TyperGroup):
    """`fastgrow compose A B` is `fastgrow compose experts A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["experts", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Compose models: `fastgrow compose RU ZH --rule mean --out RUZH`; or tune, or distil one.",
    no_args_is_help=True,
)


@app.command()
def experts(
    folders: Annotated[
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
    for expert in folders:
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


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="Folder of a composed model.")],
    text: Annotated[Path, typer.Argument(help="Text file, one document a line, or folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the run and its model.")],
    what: Annotated[str, typer.Option(help="weights, adapter or head.")] = "weights",
    rank: Annotated[int, typer.Option(help="Of a new adapter.")] = 64,
    tokens: Annotated[int, typer.Option(help="To train on.")] = 100_000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Windows in a step.")] = 16,
    seed: Annotated[int, typer.Option(help="Of split and order of the text.")] = 0,
) -> None:
    """Fit a composed model to a text, while its experts' blocks stay as they are."""
    import fastgrow
    from fastgrow.cli import resumable
    from fastgrow.compose import Adapter

    ensemble = _load_ensemble(model)
    if what == "adapter" and not isinstance(ensemble.rule, Adapter):
        ensemble.reweight(Adapter(rank))
    data, train = _training(ensemble, text, lr, batch_size, seed)
    with resumable():
        fastgrow.compose.tune(
            ensemble,
            data,
            what=what,  # type: ignore[arg-type]
            tokens=tokens,
            train=train,
            out=out,
        )
    typer.echo(f"{out / 'model'}: {_measured(ensemble, data)}")


@app.command()
def distill(
    model: Annotated[Path, typer.Argument(help="Folder of a composed model, the teacher.")],
    text: Annotated[Path, typer.Argument(help="Text file, one document a line, or folder.")],
    student: Annotated[Path, typer.Option(help="Folder of the model that is to learn.")],
    out: Annotated[Path, typer.Option(help="Folder for the run and its model.")],
    temperature: Annotated[float, typer.Option(help="Above 1 flattens what is taught.")] = 1.0,
    truth: Annotated[float, typer.Option(help="Share of the text itself, 0 to 1.")] = 0.0,
    tokens: Annotated[int, typer.Option(help="To train on.")] = 100_000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Windows in a step.")] = 16,
    seed: Annotated[int, typer.Option(help="Of split and order of the text.")] = 0,
) -> None:
    """Train one model to predict what a composed one predicts."""
    import fastgrow
    from fastgrow.cli import resumable
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError
    from fastgrow.nn import Decoder

    teacher, pupil = _load_ensemble(model), load_model(student)
    if not isinstance(pupil, Decoder):
        raise ConfigError(f"{student}: is a composed model; the student has to be a single one")
    # A grown model comes frozen; all of it but the table is to learn.
    for name, parameter in pupil.named_parameters():
        parameter.requires_grad_(not name.startswith("embedding."))
    data, train = _training(teacher, text, lr, batch_size, seed)
    with resumable():
        fastgrow.compose.distill(
            teacher,
            pupil,
            data,
            tokens=tokens,
            train=train,
            temperature=temperature,
            truth=truth,
            out=out,
        )
    typer.echo(f"{out / 'model'}: {_measured(pupil, data)}")


def _load_ensemble(path: Path) -> Ensemble:
    from fastgrow.cli.models import load_model
    from fastgrow.compose import Ensemble
    from fastgrow.errors import ConfigError

    model = load_model(path)
    if not isinstance(model, Ensemble):
        raise ConfigError(f"{path}: is one model, not a composed one")
    if model.substrate is None:
        raise ConfigError(f"{path}: has no substrate, so it cannot read text")
    return model


def _training(
    ensemble: Ensemble, text: Path, lr: float, batch_size: int, seed: int
) -> tuple[TextData, TrainConfig]:
    from fastgrow.training import TextData, TrainConfig

    assert ensemble.substrate is not None
    train = TrainConfig(lr=lr, batch_size=batch_size, seed=seed, checkpoint_every=100)
    return TextData(text, ensemble.substrate, seed=seed), train


def _measured(model: Any, data: TextData) -> str:
    from fastgrow.evaluation import bits_per_character

    bits = bits_per_character(model, data.test).bits_per_character
    return f"{bits:.4f} bits per character on the test text"


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

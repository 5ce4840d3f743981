"""`fastgrow compose`: combine models into an ensemble, tune an ensemble, or distill one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fastgrow.compose import Ensemble, Rule
    from fastgrow.training import TextData, TrainConfig


class _Group(TyperGroup):
    """Command group in which `fastgrow compose A B` means `fastgrow compose experts A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["experts", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Combine models into an ensemble; tune or distill it. The command name `experts` is "
    "optional: `fastgrow compose RU ZH --rule mean --out RUZH` combines two models.",
    no_args_is_help=True,
)


@app.command()
def experts(
    folders: Annotated[
        list[str],
        typer.Argument(help="Folders of models or of runs, each given as PATH or NAME=PATH."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the ensemble in.")],
    rule: Annotated[
        str,
        typer.Option(
            help="How to combine the experts' predictions: mean, weighted, temperature, contrast, "
            "probability-mean, posterior or top-k."
        ),
    ] = "mean",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights in the experts' order, such as 0.6,0.4; prior probabilities for "
            "posterior and top-k."
        ),
    ] = None,
    temperatures: Annotated[
        str | None,
        typer.Option(
            help="Rule temperature: softmax temperatures in the experts' order, such as 1,1.5."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Rule contrast: name of the expert whose logits are subtracted."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Rule contrast: factor of the subtraction, at least 0.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Rule top-k: number of experts used for a token.")
    ] = None,
    forgetting: Annotated[
        float | None,
        typer.Option(
            help="Rules posterior and top-k: decay of the evidence from earlier tokens, above 0 "
            "and at most 1; 1 keeps all of it."
        ),
    ] = None,
) -> None:
    """Combine models into an ensemble, without training.

    The models must share a substrate.
    """
    import fastgrow
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError

    paths: dict[str, str] = {}
    for expert in folders:
        name, equals, path = expert.partition("=")
        if not equals:
            # runs/ru/model becomes the expert "ru": `grow` always names its model folder "model".
            folder = Path(expert).resolve()
            name, path = (folder.parent if folder.name == "model" else folder).name, expert
        if name in paths:
            raise ConfigError(
                f"{expert}: there already is an expert named {name!r}; rename one by NAME=PATH"
            )
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
    count = f"{len(models)} expert" + "s" * (len(models) != 1)
    typer.echo(f"{out}: {count} ({', '.join(models)}), rule {rule}")


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="Folder of an ensemble.")],
    text: Annotated[
        Path, typer.Argument(help="Text file with one document per line, or folder of such files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run and the tuned ensemble.")],
    what: Annotated[
        str,
        typer.Option(
            help="What to train: weights (the weight of each expert), adapter (a low-rank "
            "adapter on the combined output) or head (the experts' output heads)."
        ),
    ] = "weights",
    rank: Annotated[int, typer.Option(help="Rank of a new adapter.")] = 64,
    tokens: Annotated[int, typer.Option(help="Number of tokens to train on.")] = 100_000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Sequences per training step.")] = 16,
    seed: Annotated[
        int, typer.Option(help="Random seed of the split and of the order of the text.")
    ] = 0,
) -> None:
    """Tune an ensemble on a text.

    The experts' blocks stay frozen.
    """
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
    model: Annotated[Path, typer.Argument(help="Folder of an ensemble, the teacher.")],
    text: Annotated[
        Path, typer.Argument(help="Text file with one document per line, or folder of such files.")
    ],
    student: Annotated[Path, typer.Option(help="Folder of the model to train, the student.")],
    out: Annotated[Path, typer.Option(help="Folder for the run and the trained student.")],
    temperature: Annotated[
        float,
        typer.Option(help="Distillation temperature; above 1 flattens the teacher's predictions."),
    ] = 1.0,
    truth: Annotated[
        float,
        typer.Option(
            help="Weight of the loss on the text's own next tokens, 0 to 1; the rest is the "
            "distillation loss."
        ),
    ] = 0.0,
    tokens: Annotated[int, typer.Option(help="Number of tokens to train on.")] = 100_000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Sequences per training step.")] = 16,
    seed: Annotated[
        int, typer.Option(help="Random seed of the split and of the order of the text.")
    ] = 0,
) -> None:
    """Distill an ensemble into one model.

    The student is trained to reproduce the predictions of the ensemble.
    """
    import fastgrow
    from fastgrow.cli import resumable
    from fastgrow.cli.models import load_model
    from fastgrow.errors import ConfigError
    from fastgrow.nn import Decoder

    teacher, pupil = _load_ensemble(model), load_model(student)
    if not isinstance(pupil, Decoder):
        raise ConfigError(f"{student}: is an ensemble; the student must be a single model")
    # A grown model is loaded frozen; the student trains all parameters except the token table.
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
        raise ConfigError(
            f"{path}: expected the folder of an ensemble, found that of a single model"
        )
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


# Required and optional options of each rule.
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
        hint = "; an adapter is fitted by `fastgrow compose tune`" if name == "adapter" else ""
        raise ConfigError(f"--rule: expected one of {', '.join(_OPTIONS)}, got {name!r}{hint}")
    needed, allowed = _OPTIONS[name]
    for option in needed:
        if option not in options:
            raise ConfigError(f"--rule {name} requires --{option}")
    for option in options:
        if option not in needed + allowed:
            takers = [rule for rule, (a, b) in _OPTIONS.items() if option in a + b]
            raise ConfigError(
                f"--{option} can only be used with --rule {' or '.join(takers)}, got --rule {name}"
            )
    return Rule.from_config({"kind": name.replace("-", "_"), **options})


def _by_name(option: str, text: str | None, names: list[str]) -> dict[str, float] | None:
    """Parse comma-separated numbers, one for each expert, in the experts' order."""
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

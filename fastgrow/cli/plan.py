"""`fastgrow plan`: compute, memory and time of a growth run, before it is run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fastgrow import _terminal

if TYPE_CHECKING:
    from rich.table import Table

    from fastgrow.growth.plan import Plan, StagePlan
    from fastgrow.growth.plan.trunk_cache import CachePlan


def plan(
    config: Annotated[
        str, typer.Argument(help="A YAML or TOML file, or the name of a shipped configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, given as NAME=VALUE, such as train.batch_size=8."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            help="Time the model's parts on this machine, which takes a few seconds, to predict "
            "training times."
        ),
    ] = True,
    corpus_tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens of the training text, used to compute how often a stage reads "
            "it. By default it is counted if the text is a local file and the configuration does "
            "not state the vocabulary's size."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON instead of tables.")
    ] = False,
) -> None:
    """Predict FLOPs, memory and time of a growth run.

    Nothing is trained. The last row is a monolith for comparison: a model with all its blocks from
    the beginning.
    """
    from fastgrow.cli.planned import read_planned
    from fastgrow.growth.plan import make_plan
    from fastgrow.info import device

    run = read_planned(config, overrides or [])
    made = make_plan(
        run.model,
        run.schedule,
        run.train,
        device=device(),
        table_bytes=run.table_bytes,
        corpus_tokens=corpus_tokens or run.corpus_tokens,
        measure=measure,
        trunk=run.trunk,
    )
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=2))
    else:
        _terminal.show(*plan_parts(made))


def plan_parts(plan: Plan) -> list[str | Table]:
    """Return the text for a terminal: tables with their titles, and notes."""
    windows, seq_len = plan.micro_batch
    rows = [*((str(stage.stage), stage) for stage in plan.stages)]
    if plan.monolith is not None:
        rows.append(("monolith", plan.monolith))
    tables = [
        (
            f"{plan.machine}; micro-batch {windows} x {seq_len} tokens, {plan.accumulate} per step",
            _terminal.table(_WORK, [[name, *_work(stage)] for name, stage in rows]),
        ),
        (
            "Memory (GiB)" + (", counted, not compared with a GPU's" if plan.on_gpu else ""),
            _terminal.table(_MEMORY, [[name, *_memory(stage)] for name, stage in rows]),
        ),
        (
            "Time" + _why(plan),
            _terminal.table(_TIME, [[name, *_time(stage)] for name, stage in rows]),
        ),
    ]
    return [*(part for title, table in tables for part in (title, table, "")), *_notes(plan)]


_WORK = [
    "stage", "blocks", "active", "LoRA", "trunk", "active params", "total params", "tokens",
    "forward", "backward", "FLOPs",
]  # fmt: skip
_MEMORY = [
    "stage", "weights", "optimizer", "best copy", "activations", "loss", "gradients",
    "trunk cache", "peak", "fits",
]  # fmt: skip
_TIME = [
    "stage", "tokens/s", "time", "text read", "trunk cache", "bytes/token", "caching pays off",
    "this run",
]  # fmt: skip


def _work(stage: StagePlan) -> list[str]:
    shape = stage.shape
    lora = f"{len(shape.adapted)}, rank {shape.rank}" if shape.adapted else "-"
    return [
        str(shape.depth),
        str(len(shape.trained)),
        lora,
        str(shape.n_trunk),
        f"{stage.active_parameters:,}",
        f"{stage.total_parameters:,}",
        ("≤ " if stage.may_end_earlier else "") + f"{stage.tokens:,}",
        short(stage.flops.forward),
        short(stage.flops.backward),
        short(stage.total_flops),
    ]


def _memory(stage: StagePlan) -> list[str]:
    step = stage.step
    parts = (stage.weights, stage.optimizer, stage.best, step.activations, step.loss)
    kept = 0 if stage.cache is None else stage.cache.kept
    gib = [f"{part / 2**30:.3f}" for part in (*parts, step.gradients, kept, stage.peak)]
    return [*gib, "yes" if stage.fits else "no"]


def _time(stage: StagePlan) -> list[str]:
    speed = "-" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}"
    seconds = "-" if stage.seconds is None else duration(stage.seconds)
    cache = stage.cache
    if cache is None:
        return [speed, seconds, "-", "-", "-", "no frozen trunk", "-"]
    size = "?" if cache.bytes is None else f"{cache.bytes / 2**30:.2f} GiB"
    read = "?" if cache.passes is None else f"{cache.passes:.2f} x"
    pays = _verdict(cache, measured=stage.seconds is not None)
    return [speed, seconds, read, size, f"{cache.bytes_per_token:,}", pays, _done(cache)]


def _done(cache: CachePlan) -> str:
    """Whether the run caches the trunk's output, by its settings."""
    if not cache.asked:
        return "recomputes the trunk: trunk.cache is off"
    if cache.place is None:
        return f"recomputes the trunk: {cache.reason}"
    return f"caches in {cache.place}"


def _verdict(cache: CachePlan, *, measured: bool) -> str:
    if cache.pays is not None:
        return "yes" if cache.pays else "no"
    if cache.pays_from is not None:
        return f"from {cache.pays_from:.2f} passes over the text"
    if not measured:
        return f"saves {short(cache.saved_flops)} FLOPs per token"
    return "never: reading the cache is slower"


def _why(plan: Plan) -> str:
    return "" if plan.measured else f": not measured ({plan.reason})"


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.monolith is not None:
        whole, monolith = plan.total_flops, plan.monolith
        notes.append(
            f"Total: {short(whole)} FLOPs, {whole / monolith.total_flops:.2f} x those of a "
            f"monolith on as many tokens ({short(monolith.total_flops)}); peak memory "
            f"{plan.peak / monolith.peak:.2f} x the monolith's."
        )
        if plan.seconds is not None and monolith.seconds is not None:
            notes.append(
                f"Total training time: {duration(plan.seconds)}, "
                f"{plan.seconds / monolith.seconds:.2f} x the monolith's."
            )
    notes.append("Forward and backward are FLOPs per token. Times do not include evaluations.")
    return notes


def short(number: float) -> str:
    """Format a count with at most four digits and a unit: 12.3 M."""
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} Z"


def duration(seconds: float) -> str:
    """Format seconds in days, hours, minutes or seconds."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"

"""The list of commands."""

from __future__ import annotations

import typer

from fastgrow.cli import (
    bench,
    compose,
    data,
    demo,
    doctor,
    evaluate,
    generate,
    grow,
    info,
    inspect,
    plan,
    report,
    study,
    substrate,
)

app = typer.Typer(
    help="Grow Transformer language models and compose them. The token embeddings are frozen and "
    "drawn from glyph bitmaps (the substrate); a model grows by adding blocks in stages; several "
    "models on one substrate are composed by combining their predictions.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(substrate.app, name="substrate")
app.add_typer(data.app, name="data")
app.command("grow")(grow.grow)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.add_typer(compose.app, name="compose")
app.command("evaluate")(evaluate.evaluate)
app.command("study")(study.study)
app.command("generate")(generate.generate)
app.command("inspect")(inspect.inspect)
app.command("report")(report.report)
app.command("info")(info.info)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    bench.bench
)

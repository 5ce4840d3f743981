"""The sections of a page about a saved model or ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgrow.compose import Ensemble, load
from fastgrow.compose.files import Model
from fastgrow.errors import FastgrowError
from fastgrow.nn import Decoder
from fastgrow.report.inside.depth import CAVEAT, add_samples
from fastgrow.report.inside.excerpts import Excerpt, bundled_excerpts, own_excerpt
from fastgrow.report.inside.neighbours import add_neighbours
from fastgrow.report.inside.options import PageOptions
from fastgrow.report.inside.records import format_value
from fastgrow.report.inside.support import add_support
from fastgrow.report.page import Report
from fastgrow.training.log import format_count

_MOST_EXPERTS = 4


def open_model(report: Report, folder: Path, options: PageOptions) -> Model | None:
    """Return the model of a folder, or None and a note in the report that gives the reason."""
    if not options.models:
        report.note("No model was loaded, as requested. The page shows only the records.")
        return None
    try:
        model = load(folder, device=options.device)
    except (FastgrowError, OSError) as error:
        report.note(f"The sections about the model are missing: {error}.")
        return None
    if model.substrate is None:
        report.note("The model has no substrate, so it cannot read or generate text.")
        return None
    return model


def excerpts_for(
    model: Model, options: PageOptions, runs: Mapping[Path, Mapping[str, Any]]
) -> list[Excerpt]:
    """Return the given text, or else test texts of the runs, or else bundled texts.

    Args:
        model: a model with a substrate.
        options: options of the page.
        runs: settings of each run by its folder.
    """
    if options.text is not None:
        return [Excerpt(options.text, "the given text")]
    own = [own_excerpt(folder, settings, model.substrate) for folder, settings in runs.items()]
    distinct: dict[str, Excerpt] = {}
    for excerpt in own:
        if excerpt is not None:
            distinct.setdefault(excerpt.text, excerpt)
    return list(distinct.values()) or bundled_excerpts(model.substrate)


def add_experts(report: Report, ensemble: Ensemble) -> None:
    """Add a table of the experts, and the rule of the ensemble."""
    report.heading("Experts")
    rule = ensemble.rule.to_config()
    further = {name: value for name, value in rule.items() if name != "kind"}
    report.paragraph(
        f"{len(ensemble.names)} experts, combined by the rule “{rule['kind']}”"
        + (
            f" with {', '.join(f'{k} {format_value(v)}' for k, v in further.items())}."
            if further
            else "."
        )
    )
    rows = []
    for name, model in ensemble.experts.items():
        if isinstance(model, Decoder):
            parameters = format_count(model.num_parameters())
            rows.append([name, str(model.n_layer), str(model.config.d_model), parameters])
        else:
            rows.append([name, "–", "–", "–"])
    report.table(["expert", "blocks", "width", "parameters"], rows)


def add_model(
    report: Report,
    model: Model,
    excerpts: list[Excerpt],
    options: PageOptions,
    *,
    together: bool = True,
) -> None:
    """Add all sections that need the model itself.

    Args:
        report: report to add to.
        model: a model with a substrate.
        excerpts: texts for the samples and the support of the experts.
        options: options of the page.
        together: whether to add samples of an ensemble as a whole.
    """
    if isinstance(model, Ensemble):
        best = add_support(report, model, excerpts)
        if together:
            _add_together(report, model, excerpts, options.seed)
        decoders = {n: m for n, m in model.experts.items() if isinstance(m, Decoder)}
        report.heading("Samples by depth")
        report.paragraph(CAVEAT)
        for name, expert in list(decoders.items())[:_MOST_EXPERTS]:
            add_samples(report, expert, best.get(name), options.seed, name=name)
        if len(decoders) > _MOST_EXPERTS:
            report.note(f"Samples by depth are shown for the first {_MOST_EXPERTS} experts only.")
    else:
        report.heading("Samples by depth")
        report.paragraph(CAVEAT)
        add_samples(report, model, excerpts[0] if excerpts else None, options.seed)
    add_neighbours(report, model.substrate, options.neighbours)


def _add_together(report: Report, model: Ensemble, excerpts: list[Excerpt], seed: int) -> None:
    report.heading("Samples of the ensemble")
    for excerpt in excerpts or [Excerpt("", "no text")]:
        prompt = excerpt.prompt
        try:
            text = model.generate(prompt, max_new_tokens=48, temperature=0.7, top_k=40, seed=seed)
        except FastgrowError as error:
            report.note(f"No sample: {error}.")
            continue
        report.sample(text, prompt)

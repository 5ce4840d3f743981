"""What a saved model, single or composed, adds to the page."""

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
from fastgrow.report.inside.records import shown
from fastgrow.report.inside.support import add_support
from fastgrow.report.inside.wishes import Wishes
from fastgrow.report.page import Report
from fastgrow.training.log import format_count

_MOST_EXPERTS = 4


def open_model(report: Report, folder: Path, wishes: Wishes) -> Model | None:
    """The model in a folder; where it cannot be had, a note says why."""
    if not wishes.models:
        report.note("No model was loaded, as asked: the page shows the records alone.")
        return None
    try:
        model = load(folder, device=wishes.device)
    except (FastgrowError, OSError) as error:
        report.note(f"What a model tells is missing: {error}.")
        return None
    if model.substrate is None:
        report.note("The model has no substrate, so it reads and writes no text.")
        return None
    return model


def excerpts_for(
    model: Model, wishes: Wishes, runs: Mapping[Path, Mapping[str, Any]]
) -> list[Excerpt]:
    """The text that was asked for, else the runs' own test texts, else bundled ones.

    Args:
        model: on a substrate.
        wishes: what was asked for.
        runs: the settings of each run by its folder.
    """
    if wishes.text is not None:
        return [Excerpt(wishes.text, "the given text")]
    own = [own_excerpt(folder, settings, model.substrate) for folder, settings in runs.items()]
    distinct: dict[str, Excerpt] = {}
    for excerpt in own:
        if excerpt is not None:
            distinct.setdefault(excerpt.text, excerpt)
    return list(distinct.values()) or bundled_excerpts(model.substrate)


def add_experts(report: Report, ensemble: Ensemble) -> None:
    """A table of the experts, and the rule that merges them."""
    report.heading("Experts")
    rule = ensemble.rule.to_config()
    further = {name: value for name, value in rule.items() if name != "kind"}
    report.paragraph(
        f"{len(ensemble.names)} experts, merged by the rule “{rule['kind']}”"
        + (f" with {', '.join(f'{k} {shown(v)}' for k, v in further.items())}." if further else ".")
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
    report: Report, model: Model, excerpts: list[Excerpt], wishes: Wishes, *, together: bool = True
) -> None:
    """All sections that need the model itself.

    Args:
        report: to add to.
        model: on a substrate.
        excerpts: texts to look at it with.
        wishes: what was asked for.
        together: samples of a composed model as a whole, too.
    """
    if isinstance(model, Ensemble):
        best = add_support(report, model, excerpts)
        if together:
            _add_together(report, model, excerpts, wishes.seed)
        decoders = {n: m for n, m in model.experts.items() if isinstance(m, Decoder)}
        report.heading("Samples by depth")
        report.paragraph(CAVEAT)
        for name, expert in list(decoders.items())[:_MOST_EXPERTS]:
            add_samples(report, expert, best.get(name), wishes.seed, name=name)
        if len(decoders) > _MOST_EXPERTS:
            report.note(f"Samples by depth are of the first {_MOST_EXPERTS} experts alone.")
    else:
        report.heading("Samples by depth")
        report.paragraph(CAVEAT)
        add_samples(report, model, excerpts[0] if excerpts else None, wishes.seed)
    add_neighbours(report, model.substrate, wishes.neighbours)


def _add_together(report: Report, model: Ensemble, excerpts: list[Excerpt], seed: int) -> None:
    report.heading("Samples of all together")
    for excerpt in excerpts or [Excerpt("", "no text")]:
        prompt = excerpt.prompt
        try:
            text = model.generate(prompt, max_new_tokens=48, temperature=0.7, top_k=40, seed=seed)
        except FastgrowError as error:
            report.note(f"No sample: {error}.")
            continue
        report.sample(text, prompt)

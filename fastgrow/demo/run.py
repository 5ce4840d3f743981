"""The demo: grow three specialists, compose them, and compare them with controls."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastgrow import _files, _terminal, report
from fastgrow.compose import Ensemble, Mean
from fastgrow.demo.findings import composition_findings, growth_findings
from fastgrow.demo.measure import Matrix, measure_matrix
from fastgrow.demo.settings import SCRIPTS, DemoSettings
from fastgrow.demo.specialists import (
    GROWN,
    MONOLITH,
    NEVER_GROWN,
    DemoTexts,
    prepare_texts,
    train_specialist,
)
from fastgrow.growth import GrowthResult
from fastgrow.nn import Decoder
from fastgrow.substrate.picture import glyph_sheet

if TYPE_CHECKING:
    from rich.table import Table

PROMPTS = {
    "Latin": "Everyone has the right to ",
    "Cyrillic": "Каждый человек имеет право на ",
    "Han": "人人有权",
}
GLYPHS = "AÄßåñЖЙщєѓ人有權春月"


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo."""

    growth: Mapping[str, Mapping[str, GrowthResult]]
    matrix: Matrix
    samples: Mapping[str, Mapping[str, str]]
    findings: list[str]
    seconds: float


def run_demo(settings: DemoSettings, out: Path, *, quiet: bool = False) -> DemoResult:
    """Run the demo, or resume a demo that was stopped in `out`.

    Args:
        settings: sizes and seed.
        out: folder of the runs, the composed model and the report.
        quiet: print nothing.

    Raises:
        ConfigError: `out` contains a demo with other settings.
    """
    started = time.perf_counter()

    def say(*parts: str | Table) -> None:
        if not quiet:
            _terminal.show(*parts)

    texts = prepare_texts(settings.d_model, out / "tokens")
    say(f"substrate: {len(texts.substrate)} tokens drawn as glyphs, frozen")
    growth = {
        script: train_specialist(script, texts, settings, out, quiet=quiet) for script in SCRIPTS
    }
    experts = {script: growth[script][GROWN].model for script in SCRIPTS}
    ensemble = Ensemble(experts, rule=Mean())
    ensemble.save(out / "composed")
    samples = _samples(experts, ensemble, settings.seed)
    matrix = measure_matrix(experts, texts, settings)
    findings = [*growth_findings(growth), *composition_findings(matrix)]
    result = DemoResult(growth, matrix, samples, findings, time.perf_counter() - started)
    _write(result, texts, settings, out)

    say(
        "",
        "Bits per character on each specialist's own test text, by depth, and of its controls",
        _terminal.table(*depth_table(growth)),
        "",
        "Bits per character of the experts and the composed model, by test text",
        _terminal.table(*matrix_table(matrix)),
        "",
        *(f"- {sentence}" for sentence in findings),
        "",
        f"report: {out / 'report.html'}  ({result.seconds:.0f} s)",
    )
    return result


def depth_table(
    growth: Mapping[str, Mapping[str, GrowthResult]],
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: bits of each specialist by depth, and of its controls."""
    some = next(iter(growth.values()))[GROWN].stages
    header = ["specialist", *(f"grown, depth {s.depth}" for s in some), NEVER_GROWN, MONOLITH]
    rows = []
    for script, runs in growth.items():
        stages = [
            *runs[GROWN].stages,
            runs[NEVER_GROWN].stages[-1],
            runs[MONOLITH].stages[-1],
        ]
        rows.append([script, *(f"{stage.bits['test']:.3f}" for stage in stages)])
    return header, rows


def matrix_table(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the expert matrix."""
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in matrix.rows.items()]
    return ["", *matrix.columns], rows


def _samples(
    experts: Mapping[str, Decoder], ensemble: Ensemble, seed: int
) -> dict[str, dict[str, str]]:
    """Return continuations of every prompt by its specialist and by the composed model."""
    return {
        script: {
            name: model.generate(prompt, max_new_tokens=40, temperature=0.7, top_k=40, seed=seed)
            for name, model in ((f"expert {script}", experts[script]), ("composed", ensemble))
        }
        for script, prompt in PROMPTS.items()
    }


def _curves(
    growth: Mapping[str, Mapping[str, GrowthResult]], tokens_per_step: int
) -> dict[str, dict[str, report.Curve]]:
    """Return the validation curves, read from the log of each run."""
    key = "validation_bits_per_character"
    panels: dict[str, dict[str, report.Curve]] = {}
    for script, runs in growth.items():
        panels[script] = {}
        for kind, run in runs.items():
            assert run.out is not None
            lines = (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [row for row in map(json.loads, lines) if key in row]
            ends = list(itertools.accumulate(stage.tokens for stage in run.stages))
            panels[script][kind] = report.Curve(
                [row["global_step"] * tokens_per_step for row in rows],
                [row[key] for row in rows],
                ends[:-1],
            )
    return panels


def _write(result: DemoResult, texts: DemoTexts, settings: DemoSettings, out: Path) -> None:
    curves = _curves(result.growth, settings.tokens_per_step)
    report.growth_curves(curves, out / "growth.png")
    matrix = result.matrix
    report.matrix(list(matrix.rows), matrix.columns, list(matrix.rows.values()), out / "matrix.png")
    glyph_sheet(texts.substrate, GLYPHS, out / "glyphs.png")
    _files.write_json(
        out / "demo.json",
        {
            "settings": asdict(settings),
            "substrate": texts.substrate.fingerprint,
            "growth": {
                script: {
                    kind: [asdict(stage) for stage in run.stages] for kind, run in runs.items()
                }
                for script, runs in result.growth.items()
            },
            "matrix": asdict(matrix),
            "samples": result.samples,
            "findings": result.findings,
            "seconds": result.seconds,
        },
    )
    page = report.Report("fastgrow demo: grow three specialists, compose them")
    page.paragraph(
        f"Three specialists, {', '.join(SCRIPTS)}, were grown on one frozen substrate of "
        f"{len(texts.substrate)} glyphs to {settings.blocks} blocks. Each new block starts as a "
        f"copy of the block below it. A specialist is trained on {settings.tokens:,} tokens (width "
        f"{settings.d_model}, seed {settings.seed}), and the specialists are composed without "
        "further training. Text: the Universal Declaration of Human Rights, and Chinese poems. All "
        "results are bits per character, where lower is better. Results of one seed at this size "
        "are an illustration, not evidence."
    )
    page.heading("Findings")
    page.points(result.findings)
    page.heading("Depth")
    page.paragraph(
        "Bits per character on each specialist's own test text after every stage, and of two "
        "controls at equal tokens: a model that keeps the depth of the first stage (never grown), "
        "and a monolith, which has all its blocks from the beginning."
    )
    page.table(*depth_table(result.growth))
    page.figure("growth.png", "Validation curves; stage boundaries dashed")
    page.heading("Composition")
    page.table(*matrix_table(matrix))
    page.figure("matrix.png", "Bits per character by model and test text")
    page.heading("Samples")
    for script, by_model in result.samples.items():
        for name, text in by_model.items():
            page.paragraph(f"{name}, prompt “{PROMPTS[script].strip()}”")
            page.sample(text)
    page.heading("The substrate")
    page.paragraph("The input vector of a token is its glyph, rotated and normalised.")
    page.figure("glyphs.png", "Glyphs of the substrate")
    page.write(out)

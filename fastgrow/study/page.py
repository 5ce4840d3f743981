"""Write a study's report from its results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgrow import report
from fastgrow.study.results import MIX
from fastgrow.study.tables import (
    bits_table,
    budget_table,
    cost_table,
    depth_table,
    difference_table,
    rules_table,
    taken_table,
)


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Write report.md, report.html and their figures into a folder."""
    settings = results["settings"]
    page = report.Report(f"Study: {settings['name']}")
    page.paragraph(
        f"Seeds {', '.join(map(str, results['seeds']))}; numbers are mean ± standard deviation "
        f"over them. Vocabulary of {results['vocabulary']:,} characters. "
        "Bits per character: lower is better. The mix is all test texts together, each weighted "
        "by its length."
    )
    page.heading("Bits per character")
    page.table(*bits_table(results))
    if results["ensembles"]:
        page.paragraph("Each rule on the mix:")
        page.table(*rules_table(results))
        page.paragraph(
            "Rules whose parameters were chosen or fitted on the tuning text, which no expert was "
            "trained on:"
        )
        page.table(*taken_table(results))
    if "reference" in settings:
        page.heading(f"Compared with {settings['reference']}")
        page.table(*difference_table(results))
    page.heading("Depth")
    page.paragraph("Bits per character on the mix after the stage that ends at a depth.")
    page.table(*depth_table(results))
    page.heading("Learning curves")
    axes: tuple[report.Unit, ...] = ("tokens", "flops")
    for measure, axis in enumerate(axes):
        name = f"curves-{axis}.png"
        report.study_curves(_curves(results, measure), axis, out / name)
        page.figure(name, f"Validation bits per character against {axis}; one line for each seed")
    lines = _lines(results)
    if lines:
        page.heading("Bits per character against FLOPs")
        report.study_lines(lines, out / "lines.png")
        page.figure("lines.png", "Test bits per character at the end of training, against FLOPs")
        page.table(*budget_table(results))
    page.heading("Cost")
    page.table(*cost_table(results))
    page.write(out)


def _lines(results: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return the points (FLOPs, bits per character) of each line: means over a training's seeds."""
    lines = {}
    for line, names in results["settings"].get("lines", {}).items():
        points = []
        for name in names:
            runs = results["trainings"][name].values()
            if runs:
                flops = next(sum(stage["flops"] for stage in run["stages"]) for run in runs)
                bits = statistics.fmean(run["stages"][-1]["bits"][MIX] for run in runs)
                points.append((flops, bits))
        if points:
            lines[line] = sorted(points)
    return lines


def _curves(
    results: Mapping[str, Any], measure: int
) -> dict[str, dict[str, list[tuple[list[float], list[float]]]]]:
    """Return the curves by panel and training, one for each seed.

    A panel has the trainings with the same shares of texts, as these share a validation text.
    """
    panels: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}
    for name, by_seed in results["trainings"].items():
        texts = results["settings"]["trainings"][name]["texts"]
        curves = [
            ([point[measure] for point in run["curve"]], [point[2] for point in run["curve"]])
            for run in by_seed.values()
        ]
        whole = sum(texts.values())
        title = ", ".join(f"{text} {share / whole:.0%}" for text, share in sorted(texts.items()))
        panels.setdefault(title, {})[name] = curves
    return panels

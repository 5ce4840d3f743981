"""Tables out of results.json: mean ± standard deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastgrow.study.results import MIX

Table = tuple[list[str], list[list[str]]]


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """ "1.23 ± 0.04" with the sample's standard deviation; one value stands alone, none is "—"."""
    if not values:
        return "—"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def bits_table(results: Mapping[str, Any], rules: Sequence[str] | None = None) -> Table:
    """Bits per character: a row for each baseline, training, and ensemble under a rule.

    Args:
        results: as in results.json.
        rules: only these of the ensembles' rules.
    """
    columns = [*results["settings"]["evaluate"], MIX]
    rows = [
        [name, *(f"{bits[column]:.2f}" for column in columns)]
        for name, bits in results["baselines"].items()
    ]
    for name, by_seed in results["trainings"].items():
        ends = [run["stages"][-1]["bits"] for run in by_seed.values()]
        rows.append([name, *_cells(ends, columns)])
    for ensemble, measured_rules in results["ensembles"].items():
        for rule, by_seed in measured_rules.items():
            if rules is not None and rule not in rules:
                continue
            bits = [measured["bits"] for measured in by_seed.values()]
            rows.append([f"{ensemble}: {rule}", *_cells(bits, columns)])
    return ["bits per character", *columns], rows


def rules_table(results: Mapping[str, Any], text: str = MIX) -> Table:
    """Bits per character on one text: a row for each rule, a column for each ensemble."""
    ensembles = results["ensembles"]
    names = list(dict.fromkeys(rule for rules in ensembles.values() for rule in rules))
    rows = [
        [
            name,
            *(
                mean_sd([m["bits"][text] for m in rules.get(name, {}).values()])
                for rules in ensembles.values()
            ),
        ]
        for name in names
    ]
    return ["rule", *ensembles], rows


def depth_table(results: Mapping[str, Any]) -> Table:
    """Bits per character on the mix after each stage of every training."""
    depths = sorted(
        {
            stage["depth"]
            for by_seed in results["trainings"].values()
            for run in by_seed.values()
            for stage in run["stages"]
        }
    )
    rows = []
    for name, by_seed in results["trainings"].items():
        # Several stages may end at one depth, a polish for example; the last of them counts.
        ends = [{s["depth"]: s["bits"][MIX] for s in run["stages"]} for run in by_seed.values()]
        rows.append([name, *(mean_sd([e[d] for e in ends if d in e]) for d in depths)])
    return ["training", *(f"depth {depth}" for depth in depths)], rows


def cost_table(results: Mapping[str, Any]) -> Table:
    """What trainings cost, and what each model costs at every token that it reads."""
    header = [
        "cost",
        "training, thousand tokens",
        "training, TFLOP",
        "training, process seconds",
        "active at most, thousand",
        "parameters, thousand",
        "reading a token, MFLOP",
    ]
    rows = []
    for name, by_seed in results["trainings"].items():
        runs = list(by_seed.values())
        if not runs:
            continue
        stages = runs[0]["stages"]
        rows.append(
            [
                name,
                f"{sum(stage['tokens'] for stage in stages) / 1e3:,.0f}",
                f"{sum(stage['flops'] for stage in stages) / 1e12:.2f}",
                mean_sd([run["process_seconds"] for run in runs], 0),
                f"{max(stage['active_parameters'] for stage in stages) / 1e3:,.0f}",
                f"{stages[-1]['total_parameters'] / 1e3:,.0f}",
                f"{runs[0]['forward_flops'] / 1e6:.2f}",
            ]
        )
    return header, rows


def taken_table(results: Mapping[str, Any]) -> Table:
    """The rules whose numbers were chosen or fitted on the tuning text, as they came out."""
    rows = []
    for ensemble, rules in results["ensembles"].items():
        fitted = results["settings"]["ensembles"][ensemble]["rules"]
        for rule, by_seed in rules.items():
            if not {"choose", "tune"} & fitted[rule].keys():
                continue
            for seed, measured in by_seed.items():
                rows.append([f"{ensemble}: {rule}", seed, _told(measured["taken"])])
    return ["rule", "seed", "as fitted"], rows


def _told(taken: Mapping[str, Any]) -> str:
    parts = []
    for name, value in taken.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} {', '.join(f'{v:.2f}' for v in value.values())}")
        elif name in ("against", "strength"):
            parts.append(f"{name} {value}")
    return "; ".join(parts)


def _cells(rows: Iterable[Mapping[str, float]], columns: Sequence[str]) -> list[str]:
    rows = list(rows)
    return [mean_sd([row[column] for row in rows]) for column in columns]


TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {
    "bits": bits_table,
    "rules": rules_table,
    "depth": depth_table,
    "cost": cost_table,
    "fitted": taken_table,
}


def markdown(table: Table) -> str:
    """A table for the README."""
    header, rows = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows]) + "\n"

"""Tables of the results in results.json: mean ± standard deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastgrow.study.results import MIX

Table = tuple[list[str], list[list[str]]]


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Format a mean and sample standard deviation as "1.23 ± 0.04".

    One value is formatted as "1.23", no value as "—".
    """
    if not values:
        return "—"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def bits_table(results: Mapping[str, Any], rules: Sequence[str] | None = None) -> Table:
    """Table of bits per character: a row for each baseline, training, and ensemble under a rule.

    Args:
        results: the content of results.json.
        rules: the rules of ensembles to show; None for all.
    """
    texts = results["settings"]["evaluate"]
    columns = [*texts, MIX] if len(texts) > 1 else texts
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
    """Table of bits per character on one text: a row for each rule, a column for each ensemble."""
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
    """Table of bits per character on the mix, after each stage of every training."""
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
        # Several stages may end at the same depth, for example a polish; the last one is used.
        ends = [{s["depth"]: s["bits"][MIX] for s in run["stages"]} for run in by_seed.values()]
        rows.append([name, *(mean_sd([e[d] for e in ends if d in e]) for d in depths)])
    return ["training", *(f"depth {depth}" for depth in depths)], rows


def difference_table(results: Mapping[str, Any]) -> Table:
    """Table that compares all models with the study's reference: bits on the mix, and cost.

    A difference is computed for each seed, so that effects of the seed cancel out. "active" is the
    largest number of parameters that are active at once, which determines the size of gradients
    and optimizer state. Peak memory is that of training and is counted, not measured; older
    records do not have it.
    """
    reference = results["settings"]["reference"]
    runs = results["trainings"][reference]
    costs = dict(_COSTS)
    if not all("peak_bytes" in run for run in _runs(results)):
        del costs["peak memory"]
    base = {seed: run["stages"][-1]["bits"][MIX] for seed, run in runs.items()}
    rows = []
    for name, by_seed in results["trainings"].items():
        ends = {seed: run["stages"][-1]["bits"][MIX] for seed, run in by_seed.items()}
        more = "0" if name == reference else _paired(ends, base)
        ratios = [_ratio(runs, by_seed, cost) for cost in costs.values()]
        rows.append([name, mean_sd(list(ends.values())), more, *ratios])
    for ensemble, rules in results["ensembles"].items():
        for rule, measured in rules.items():
            ends = {seed: m["bits"][MIX] for seed, m in measured.items()}
            bits = mean_sd(list(ends.values()))
            rows.append([f"{ensemble}: {rule}", bits, _paired(ends, base), *("—" for _ in costs)])
    return [f"against {reference}", "bits per character", "more", *costs], rows


def _runs(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for by_seed in results["trainings"].values() for run in by_seed.values()]


def _active(run: Mapping[str, Any]) -> float:
    return max(stage["active_parameters"] for stage in run["stages"])


def _paired(values: Mapping[str, float], base: Mapping[str, float]) -> str:
    differences = [values[seed] - base[seed] for seed in values if seed in base]
    text = mean_sd(differences)
    return f"+{text}" if differences and statistics.fmean(differences) >= 0 else text


def _flops(run: Mapping[str, Any]) -> float:
    return sum(stage["flops"] for stage in run["stages"])


def _seconds(run: Mapping[str, Any]) -> float:
    return run["process_seconds"]


def _peak(run: Mapping[str, Any]) -> float:
    return run["peak_bytes"]


_COSTS = {
    "FLOP": _flops,
    "process seconds": _seconds,
    "active": _active,
    "peak memory": _peak,
}


def _ratio(
    base: Mapping[str, Any], other: Mapping[str, Any], cost: Callable[[Mapping[str, Any]], float]
) -> str:
    """Format the cost relative to the reference, over the seeds that both have: "0.33 ×"."""
    seeds = [seed for seed in other if seed in base]
    if not seeds:
        return "—"
    return f"{sum(cost(other[s]) for s in seeds) / sum(cost(base[s]) for s in seeds):.2f} ×"


def budget_table(results: Mapping[str, Any]) -> Table:
    """Table of the study's lines of bits per character against FLOPs: a row for each run."""
    rows = []
    for line, names in results["settings"].get("lines", {}).items():
        points = []
        for name in names:
            for seed, run in results["trainings"][name].items():
                points.append((_flops(run), run["stages"][-1]["bits"][MIX], name, seed))
        for flops, bits, name, seed in sorted(points):
            rows.append([line, name, seed, f"{flops / 1e12:.2f}", f"{bits:.3f}"])
    return ["line", "training", "seed", "TFLOP", "bits per character"], rows


def cost_table(results: Mapping[str, Any]) -> Table:
    """Table of the cost of each training, and of each model's forward pass per token."""
    header = [
        "cost",
        "training, thousand tokens",
        "training, TFLOP",
        "training, process seconds",
        "active at most, thousand",
        "parameters without the table, thousand",
        "reading a token, MFLOP",
    ]
    trainings = results["trainings"]
    rows = [_cost_row(name, [by_seed]) for name, by_seed in trainings.items() if by_seed]
    for name in results["ensembles"]:
        experts = [trainings[e] for e in results["settings"]["ensembles"][name]["experts"]]
        if all(experts):
            rows.append(_cost_row(f"{name}, together", experts))
    return header, rows


def _cost_row(name: str, models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the row of one model, or of several that are trained separately and used together."""
    some = [next(iter(by_seed.values())) for by_seed in models]
    stages = [run["stages"] for run in some]
    seeds = [seed for seed in models[0] if all(seed in by_seed for by_seed in models)]
    seconds = [sum(by_seed[seed]["process_seconds"] for by_seed in models) for seed in seeds]
    return [
        name,
        f"{sum(s['tokens'] for run in stages for s in run) / 1e3:,.0f}",
        f"{sum(s['flops'] for run in stages for s in run) / 1e12:.2f}",
        mean_sd(seconds, 0),
        f"{max(s['active_parameters'] for run in stages for s in run) / 1e3:,.0f}",
        f"{sum(map(_without_table, some)) / 1e3:,.0f}",
        f"{sum(run['forward_flops'] for run in some) / 1e6:.2f}",
    ]


def _without_table(run: Mapping[str, Any]) -> int:
    # Experts share one token table, so that the sum of their total sizes would count it repeatedly.
    return run["stages"][-1]["total_parameters"] - run["table_parameters"]


def taken_table(results: Mapping[str, Any]) -> Table:
    """Table of the rules whose parameters were chosen or fitted on the tuning text."""
    rows = []
    for ensemble, rules in results["ensembles"].items():
        fitted = results["settings"]["ensembles"][ensemble]["rules"]
        for rule, by_seed in rules.items():
            if not {"choose", "tune"} & fitted[rule].keys():
                continue
            for seed, measured in by_seed.items():
                rows.append([f"{ensemble}: {rule}", seed, _parameters(measured["taken"])])
    return ["rule", "seed", "as fitted"], rows


def _parameters(taken: Mapping[str, Any]) -> str:
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
    "difference": difference_table,
    "cost": cost_table,
    "budget": budget_table,
    "fitted": taken_table,
}


def markdown(table: Table) -> str:
    """Format a table as Markdown."""
    header, rows = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows]) + "\n"

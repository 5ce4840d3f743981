"""The findings of the demo in sentences. All of them are generated from the results of the run.

Two results that differ by less than `NOISE` are called level, because the run is small.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastgrow.demo.measure import MEAN, MIXED, Matrix
from fastgrow.demo.specialists import GROWN, MONOLITH, NEVER_GROWN
from fastgrow.growth import GrowthResult

NOISE = 0.02


def composition_findings(matrix: Matrix) -> list[str]:
    """Compare the mean of logits with the experts and the baselines, on the mix and per script."""
    experts = {name: matrix.at(name, MIXED) for name in matrix.rows if name.startswith("expert ")}
    best = min(experts, key=lambda name: experts[name])
    mean = matrix.at(MEAN, MIXED)
    sentences = [
        f"On the mixed text the mean of logits reaches {mean:.2f} bits per character, "
        + _against(mean, experts[best], f"the best single expert ({best.removeprefix('expert ')})")
        + f", {_against(mean, matrix.at('unigram', MIXED), 'unigram')} and "
        + f"{_against(mean, matrix.at('uniform', MIXED), 'uniform')}."
    ]
    rules = [
        name for name in matrix.rows if name not in experts and name not in ("unigram", "uniform")
    ]
    winner = min(rules, key=lambda name: matrix.at(name, MIXED))
    if winner != MEAN:
        sentences.append(f"Of the rules, {winner} does best there: {matrix.at(winner, MIXED):.2f}.")
    for name in experts:
        script = name.removeprefix("expert ")
        own = matrix.at(name, script)
        costs = ", ".join(f"{rule} {matrix.at(rule, script) - own:+.2f}" for rule in rules)
        sentences.append(
            f"Against the {script} expert's own {own:.2f} on {script}, composing costs: {costs}."
        )
    return sentences


def growth_findings(results: Mapping[str, Mapping[str, GrowthResult]]) -> list[str]:
    """Compare growing with the controls "never grown" and "monolith" at equal tokens."""
    sentences = []
    for script, runs in results.items():
        grown = [stage.bits["test"] for stage in runs[GROWN].stages]
        end, never, monolith = (_end(runs[kind]) for kind in (GROWN, NEVER_GROWN, MONOLITH))
        sentences.append(
            f"{script}: growing from {runs[GROWN].stages[0].depth} to "
            f"{runs[GROWN].stages[-1].depth} blocks went from {grown[0]:.2f} to {end:.2f}; at "
            f"equal tokens it ended {_against(end, never, 'never grown')} and "
            f"{_against(end, monolith, 'the monolith')}. Training took "
            + ", ".join(f"{kind} {_seconds(run):.0f} s" for kind, run in runs.items())
            + "."
        )
    ahead, level = (
        sum(_end(runs[GROWN]) < _end(runs[control]) + margin for runs in results.values())
        for control, margin in ((NEVER_GROWN, -NOISE), (MONOLITH, NOISE))
    )
    sentences.append(
        f"So at this size, on as many tokens, growing beat what was never grown in {ahead} of "
        f"{len(results)} specialists, and was level with the monolith or ahead of it in {level}."
    )
    return sentences


def _end(run: GrowthResult) -> float:
    return run.stages[-1].bits["test"]


def _seconds(run: GrowthResult) -> float:
    return sum(stage.seconds for stage in run.stages)


def _against(value: float, other: float, name: str) -> str:
    difference = value - other
    if abs(difference) < NOISE:
        return f"level with {name} ({other:.2f})"
    word = "better" if difference < 0 else "worse"
    return f"{abs(difference):.2f} {word} than {name} ({other:.2f})"

"""The stages of the GPU suite, most important first, and the cases of the stage `headline`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.case import PASSES, Case, Family, select

# Seconds of each stage in a call of nine minutes; they scale with the call's time limit. Time that
# a stage does not use goes to the last stage.
STAGES = {
    "setup": 30.0,
    "smoke": 60.0,
    "headline": 150.0,
    "tests": 120.0,
    "tuning": 60.0,
    "rest": math.inf,
}
WHOLE = 9.0  # minutes
GROWTH_SECONDS = 60.0


@dataclass(frozen=True)
class Headline:
    """Cases of the stage `headline`: an operation, its passes, and sizes that select a shape."""

    family: str
    passes: Sequence[str]
    sizes: Mapping[str, int] = field(default_factory=dict)


HEADLINES = (
    Headline("growth_step", ("full",)),
    Headline("linear_cross_entropy", ("full", "forward")),
    Headline("layer_norm", ("full", "forward")),
    Headline("attention", ("forward", "backward"), {"D": 32, "T": 4096}),
    Headline("attention", ("forward", "backward"), {"D": 128, "T": 4096}),
    Headline("attention-decode", ("forward",)),
    Headline("mlp", ("full", "forward")),
    Headline("logit_mean", ("forward",)),
    Headline("mean_cross_entropy", ("forward",)),
    Headline("rms_norm", ("full", "forward")),
)
# Relative shares of operations in the time for speeds; 1 for others.
SHARES = {"growth_step": 3.0, "linear_cross_entropy": 3.0, "attention": 3.0}


def headline_cases(families: Sequence[Family], device: str, grid: str, dtype: str) -> list[Case]:
    """Return the cases of HEADLINES; if a grid does not have the shape, its first one is used."""
    known = {family.name: family for family in families}
    cases = []
    for headline in HEADLINES:
        family = known.get(headline.family)
        if family is None:
            continue
        shapes = family.grids[grid]
        found = [s for s in shapes if headline.sizes.items() <= s.items()] or shapes[:1]
        cases += [Case(family, found[0], dtype, pass_, device) for pass_ in headline.passes]
    return list({case.name: case for case in cases}.values())


def other_cases(
    families: Sequence[Family], device: str, grid: str, dtype: str, besides: Sequence[Case]
) -> list[Case]:
    """Return the other cases of the grid: first shapes of all operations, then second ones, …"""
    names = {case.name for case in besides}
    cases = []
    for family in families:
        shapes = list(family.grids[grid])
        for case in select([family], device=device, grid=grid, dtypes=[dtype]):
            if case.name not in names:
                cases.append((shapes.index(case.shape), -PASSES.index(case.pass_), case))
    # Sorting is stable: for equal keys, operations keep their order.
    return [case for *_, case in sorted(cases, key=lambda entry: entry[:2])]

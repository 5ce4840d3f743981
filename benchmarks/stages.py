"""What a GPU is asked, in the order of its worth: stages, and the cases of the first speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.case import PASSES, Case, Family, select

# Seconds of a call of nine minutes; a longer or shorter call stretches them alike. What a stage
# leaves goes to the last.
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
    """A case of the first speeds: an operation, its passes, and the sizes that tell its shape."""

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
# Of the time for speeds, an operation's part in relation to the others'.
SHARES = {"growth_step": 3.0, "linear_cross_entropy": 3.0, "attention": 3.0}


def headline_cases(families: Sequence[Family], device: str, grid: str, dtype: str) -> list[Case]:
    """The cases of HEADLINES; a grid without the shape gives its first."""
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
    """The rest of the grid: the first shapes of every operation before the second ones."""
    names = {case.name for case in besides}
    cases = []
    for family in families:
        shapes = list(family.grids[grid])
        for case in select([family], device=device, grid=grid, dtypes=[dtype]):
            if case.name not in names:
                cases.append((shapes.index(case.shape), -PASSES.index(case.pass_), case))
    # Sorting is stable: operations keep their order within.
    return [case for *_, case in sorted(cases, key=lambda entry: entry[:2])]

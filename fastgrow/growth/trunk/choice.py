"""Whether keeping the trunk's output pays: counted over the stages that are left.

Caching costs, in a stage, one pass of the blocks that are new to the trunk over the rows that the
stage before left, one of the whole trunk over the other rows, and the writing; it then spares the
trunk in every step, for a read. So it pays where windows come again: within the stage (several
passes over the text), or in the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrow.growth.trunk.costs import Costs


@dataclass(frozen=True)
class StageLoad:
    """What a stage asks of its trunk.

    Attributes:
        n: blocks of the trunk.
        reads: micro-batches that it trains on.
        rows: distinct windows among them, in micro-batches.
        share: of all windows that are among them, in [0, 1].
        grown: whether the trunk is that of the stage before with blocks on top, so that rows can
            be advanced.
    """

    n: int
    reads: float
    rows: float
    share: float
    grown: bool


@dataclass(frozen=True)
class Verdict:
    """Seconds of the trunk over the stages that are left, at best, with and without a cache now."""

    cached: float
    recomputed: float

    @property
    def pays(self) -> bool:
        return self.cached < self.recomputed


def break_even(n: int, costs: Costs, place: str) -> float | None:
    """Passes over its windows from which a stage by itself gains; None where it never does.

    With more of them `weigh` finds that keeping pays, with fewer that it does not.

    Args:
        n: blocks of its trunk.
        costs: measured.
        place: where rows would be kept.
    """
    read, write = costs.places[place]
    spared = n * costs.block - read
    return (n * costs.block + write) / spared if spared > 0 else None


def weigh(
    stages: Sequence[StageLoad], costs: Costs, place: str, known: float = 0.0, n_known: int = 0
) -> Verdict:
    """Compare caching the first of `stages` with not caching it, whatever is best afterwards.

    Args:
        stages: the one that begins and those after it.
        costs: measured.
        place: where rows would be kept.
        known: share of the first stage's rows that are at hand from an earlier one.
        n_known: how many blocks deep those are.
    """
    read, write = costs.places[place]
    # From the last stage to the first: the best of what follows, with rows of the stage before at
    # hand and without.
    with_rows = without = 0.0
    verdict = Verdict(0.0, 0.0)
    for index in reversed(range(len(stages))):
        stage = stages[index]
        if index == 0:
            at_hand, depth = known, n_known
        else:
            before = stages[index - 1]
            # Two stages draw their windows independently of each other.
            at_hand, depth = (before.share if stage.grown else 0.0), before.n
        recomputed = stage.reads * stage.n * costs.block + without
        kept = stage.rows * write + stage.reads * read + with_rows
        afresh = kept + stage.rows * stage.n * costs.block
        advanced = afresh - stage.rows * at_hand * depth * costs.block
        verdict = Verdict(advanced, recomputed)
        with_rows, without = min(advanced, recomputed), min(afresh, recomputed)
    return verdict

"""Whether to cache a stage's activations, and where: what fits the budget and saves most time.

In a stage, caching costs one pass of the blocks that are new in the trunk over the activations
cached in the stage before, one pass of the whole trunk over all other windows, and the writing.
After that, every step reads activations instead of running the trunk. Caching therefore saves time
if windows are read again: within the stage (several passes over the text) or in the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastgrow.growth.active import StageShape
from fastgrow.growth.length import stage_length
from fastgrow.growth.stage import Stage
from fastgrow.growth.trunk.costs import Costs
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig


@dataclass(frozen=True)
class Placement:
    """The decision for one stage.

    Attributes:
        place: where activations are cached; None recomputes them.
        reason: the reason in words.
        drop_old: whether the activations of an earlier stage are freed before the new ones are
            computed.
        estimate: the seconds that were compared; None if nothing had to be measured.
    """

    place: str | None
    reason: str
    drop_old: bool = False
    estimate: Estimate | None = None


def choose_place(
    cache: str,
    device: torch.device,
    loads: Sequence[StageLoad],
    budget: CacheBudget,
    costs: Callable[[], Costs],
) -> Placement:
    """Decide by the run's settings.

    Args:
        cache: a place, or "auto".
        device: device of the model.
        loads: loads of the stage and of those after it.
        budget: memory that the stage's activations need and may use.
        costs: measures the costs; called for "auto" only.
    """
    if cache == "auto":
        return fastest_place(loads, costs(), budget)
    return requested_place("ram" if cache == "device" and device.type == "cpu" else cache, budget)


def requested_place(place: str, budget: CacheBudget) -> Placement:
    """Use the place from the settings or, after an interruption, from before it, if it fits."""
    shortage = budget.shortage(place)
    if shortage:
        return Placement(None, shortage)
    return Placement(place, "as requested", budget.must_drop(place))


def fastest_place(loads: Sequence[StageLoad], costs: Costs, budget: CacheBudget) -> Placement:
    """Use the place where caching saves most time; none if it saves nothing."""
    placements, reasons = [], []
    for place in costs.places:
        shortage = budget.shortage(place)
        if shortage:
            reasons.append(shortage)
            continue
        drop = budget.must_drop(place)
        seconds = estimate(
            loads, costs, place, 0.0 if drop else budget.available, budget.available_depth
        )
        placements.append((seconds.cached, Placement(place, _seconds(seconds), drop, seconds)))
    if not placements:
        return Placement(None, "; ".join(dict.fromkeys(reasons)) or "there is no place to store it")
    best = min(placements, key=lambda found: found[0])[1]
    assert best.estimate is not None
    if best.estimate.pays:
        return best
    reason = f"caching does not pay: {_reads(loads)}; {best.reason}"
    return Placement(None, reason, False, best.estimate)


def _reads(loads: Sequence[StageLoad]) -> str:
    now = loads[0]
    passes = now.reads / now.distinct
    again = f"this stage reads each of its windows {passes:.3g} times"
    if len(loads) == 1:
        return f"{again} and is the last"
    share = f"{now.share:.0%} of them" if now.share < 1 else "all of them"
    return f"{again}, and the next stage reads {share} again"


def _seconds(seconds: Estimate) -> str:
    return (
        f"{seconds.cached:.3g} s for the trunk over the remaining stages, "
        f"{seconds.recomputed:.3g} s without a cache"
    )


# -- memory ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheBudget:
    """The memory that a stage's activations need, and what is available.

    Attributes:
        need: bytes of the stage's activations.
        limit: bytes that the settings allow.
        free: returns the bytes that a place, given by its name, has left.
        old_place: where the activations of an earlier stage are stored; None without any.
        old_bytes: their size.
        same_windows: whether they belong to exactly the windows that are needed now.
        available: share of the needed activations that can be advanced from them.
        available_depth: number of blocks of their trunk.
    """

    need: int
    limit: int
    free: Callable[[str], int]
    old_place: str | None = None
    old_bytes: int = 0
    same_windows: bool = False
    available: float = 0.0
    available_depth: int = 0

    def overwrites(self, place: str) -> bool:
        """Whether the new activations overwrite the old ones.

        Never in a file: one that was partly overwritten could not be recognised.
        """
        return place == self.old_place and place != "disk" and self.same_windows

    def must_drop(self, place: str) -> bool:
        """Whether the old activations have to be freed first, because both exceed the limit."""
        return not self.overwrites(place) and self.need + self.old_bytes > self.limit

    def shortage(self, place: str) -> str:
        """Return why the activations do not fit there; empty if they do."""
        if self.need > self.limit:
            return f"caching takes {megabytes(self.need)}, the limit is {megabytes(self.limit)}"
        free = self.free(place)
        if self.need > free and not self.overwrites(place):
            return f"caching takes {megabytes(self.need)}, {place} has {megabytes(free)} available"
        return ""


def megabytes(size: float) -> str:
    """Format bytes as megabytes."""
    return f"{size / 1e6:,.1f} MB"


# -- time --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageLoad:
    """How much a stage uses its trunk.

    Attributes:
        n: number of blocks of the trunk.
        reads: micro-batches that the stage trains on.
        distinct: distinct windows among them, in micro-batches.
        share: share of the text's windows that are among them, in [0, 1].
        grown: whether the trunk is that of the stage before with blocks on top, so that cached
            activations can be advanced.
    """

    n: int
    reads: float
    distinct: float
    share: float
    grown: bool


def stage_loads(
    stages: Sequence[Stage],
    shapes: Sequence[StageShape],
    config: DecoderConfig,
    train: TrainConfig,
    *,
    n_windows: int,
    seq_len: int,
) -> list[StageLoad]:
    """Return the loads of consecutive stages, counted from shapes; upper bounds with `until`.

    Args:
        stages, shapes: the stage that starts and those after it.
        config: configuration of the model.
        train: has the batch sizes.
        n_windows: number of windows of the text, which all stages read.
        seq_len: tokens in a window.
    """
    loads = []
    for index, (stage, shape) in enumerate(zip(stages, shapes, strict=True)):
        steps = stage_length(stage, shape, config, train, seq_len).steps
        reads = steps * train.accumulate
        windows = min(reads * train.batch_size, n_windows)
        loads.append(
            StageLoad(
                n=shape.n_trunk,
                reads=reads,
                distinct=windows / train.batch_size,
                share=windows / n_windows,
                grown=index > 0 and _grew(shapes[index - 1], shape),
            )
        )
    return loads


def _grew(before: StageShape, now: StageShape) -> bool:
    """Whether the trunk of a stage is that of the one before with blocks on top."""
    untouched = min(now.new, default=now.depth) >= before.n_trunk
    return 0 < before.n_trunk <= now.n_trunk and untouched


@dataclass(frozen=True)
class Estimate:
    """Seconds of the trunk over the remaining stages, at best, with and without a cache now."""

    cached: float
    recomputed: float

    @property
    def pays(self) -> bool:
        return self.cached < self.recomputed


def estimate(
    stages: Sequence[StageLoad],
    costs: Costs,
    place: str,
    available: float = 0.0,
    available_depth: int = 0,
) -> Estimate:
    """Compare caching the first of `stages` with not caching it; later stages do what is faster.

    Args:
        stages: loads of the stage that starts and of those after it.
        costs: measured costs.
        place: where activations would be stored.
        available: share of the first stage's activations that are available from an earlier one.
        available_depth: number of blocks of the trunk that they come from.
    """
    read, write = costs.places[place]
    # From the last stage to the first: the best seconds of what follows, with activations of the
    # stage before and without.
    with_cache = without = 0.0
    result = Estimate(0.0, 0.0)
    for index in reversed(range(len(stages))):
        stage = stages[index]
        if index == 0:
            share, depth = available, available_depth
        else:
            before = stages[index - 1]
            # Two stages draw their windows independently of each other.
            share, depth = (before.share if stage.grown else 0.0), before.n
        recomputed = stage.reads * stage.n * costs.block + without
        stored = stage.distinct * write + stage.reads * read + with_cache
        from_ids = stored + stage.distinct * stage.n * costs.block
        advanced = from_ids - stage.distinct * share * depth * costs.block
        result = Estimate(advanced, recomputed)
        with_cache, without = min(advanced, recomputed), min(from_ids, recomputed)
    return result


def break_even(n: int, costs: Costs, place: str) -> float | None:
    """Return the passes over its windows from which caching saves time in a stage by itself.

    With more passes `estimate` finds that caching pays, with fewer that it does not. None if it
    never pays.

    Args:
        n: number of blocks of the trunk.
        costs: measured costs.
        place: where activations would be stored.
    """
    read, write = costs.places[place]
    saved = n * costs.block - read
    return (n * costs.block + write) / saved if saved > 0 else None

"""Plan the activation cache of the frozen trunk, by the same rule as the trunk engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastgrow.growth.plan.block_memory import WIDE
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.costs import Costs, measure_places
from fastgrow.growth.trunk.placement import (
    CacheBudget,
    Placement,
    StageLoad,
    break_even,
    choose_place,
    estimate,
)
from fastgrow.nn import DecoderConfig

# Bytes of the activations that places are timed with, enough to measure their bandwidth.
PROBE_BYTES = 32 << 20


@dataclass(frozen=True)
class CachePlan:
    """Cost and benefit of caching the activations of one stage's trunk.

    Attributes:
        bytes_per_token: bytes of the trunk's output per token.
        saved_flops: FLOPs of the trunk's forward pass per token.
        asked: whether the run's settings enable the cache. If not, the other attributes describe
            what `cache="auto"` would do.
        bytes: bytes of the stage's cached activations; None if the size of the text is unknown.
        passes: how often the stage reads each of its windows; None if unknown.
        place: where activations are cached; None if they are recomputed, or if unknown.
        reason: explanation of the decision.
        pays: whether the cache is faster over the remaining stages; None if unknown.
        pays_from: minimum number of passes for which the cache is faster in this stage alone; None
            if it never is, or if it was not measured.
        filling: seconds to compute and write the activations.
        reading: seconds to read the activations of one micro-batch.
    """

    bytes_per_token: int
    saved_flops: int
    asked: bool = False
    bytes: int | None = None
    passes: float | None = None
    place: str | None = None
    reason: str = "the size of the text is unknown"
    pays: bool | None = None
    pays_from: float | None = None
    filling: float = 0.0
    reading: float = 0.0

    @property
    def kept(self) -> int:
        """Bytes that the run caches."""
        return self.bytes if self.asked and self.place is not None and self.bytes else 0


@dataclass(frozen=True)
class Rates:
    """Inputs of the decision, in addition to the loads of the stages.

    Attributes:
        settings: the user's trunk settings.
        micro_batch: number of windows in a micro-batch, and of tokens in a window.
        device: device of the model.
        free: function that returns the free bytes of a place.
        costs: measured costs; None if they were not measured.
    """

    settings: Trunk
    micro_batch: tuple[int, int]
    device: torch.device
    free: Callable[[str], int]
    costs: Costs | None


def plan_caches(
    config: DecoderConfig,
    trunks: Sequence[int],
    block_flops: int,
    loads: Sequence[StageLoad] | None,
    rates: Rates,
) -> list[CachePlan | None]:
    """Decide about the cache of every stage as the engine will do; None for a stage without trunk.

    Args:
        config: configuration of the model.
        trunks: number of blocks of each stage's trunk.
        block_flops: FLOPs of a block's forward pass per token.
        loads: windows and reads of each stage's trunk; None if the size of the text is unknown.
        rates: settings and measured costs.
    """
    # The residual stream is float32 also with autocast.
    width = (2 if rates.settings.dtype == "bf16" else WIDE) * config.d_model
    asked = rates.settings.cache != "off"
    decisions = _decisions(loads or (), width, rates)
    found: list[CachePlan | None] = []
    for index, n in enumerate(trunks):
        if n == 0:
            found.append(None)
            continue
        alone = CachePlan(width, n * block_flops, asked, pays_from=_pays_from(n, rates.costs))
        if loads is not None:
            alone = replace(alone, **_facts(decisions[index], rates.costs))
        found.append(alone)
    return found


@dataclass(frozen=True)
class _Decision:
    """The engine's plan for a stage, and its inputs."""

    placement: Placement
    load: StageLoad
    budget: CacheBudget
    pays: bool | None


def _decisions(loads: Sequence[StageLoad], width: int, rates: Rates) -> list[_Decision | None]:
    """Decide stage by stage, given what the previous stage has cached."""
    windows, seq_len = rates.micro_batch
    decisions: list[_Decision | None] = []
    kept: _Decision | None = None
    for index, load in enumerate(loads):
        if load.n == 0:
            decisions.append(None)
            kept = None
            continue
        budget = CacheBudget(
            need=round(load.distinct * windows) * seq_len * width,
            limit=rates.settings.limit,
            free=rates.free,
        )
        if kept is not None and load.grown:
            budget = replace(
                budget,
                old_place=kept.placement.place,
                old_bytes=kept.budget.need,
                same_windows=load.share == kept.load.share == 1,
                available=kept.load.share,
                available_depth=kept.load.n,
            )
        decision = _decide(loads[index:], budget, rates)
        decisions.append(decision)
        kept = decision if decision.placement.place is not None else None
    return decisions


def _decide(loads: Sequence[StageLoad], budget: CacheBudget, rates: Rates) -> _Decision:
    costs, asked = rates.costs, rates.settings.cache
    # `pays` is also reported for runs whose cache is off.
    asked = "auto" if asked == "off" else asked
    if costs is None and asked == "auto":
        return _Decision(Placement(None, "not measured"), loads[0], budget, None)
    placement = choose_place(asked, rates.device, loads, budget, lambda: _measured(costs))
    pays = None
    if costs is not None and asked == "auto":
        pays = placement.place is not None
    elif costs is not None and placement.place in costs.places:
        available = 0.0 if placement.drop_old else budget.available
        pays = estimate(loads, costs, placement.place, available, budget.available_depth).pays
    return _Decision(placement, loads[0], budget, pays)


def _measured(costs: Costs | None) -> Costs:
    assert costs is not None
    return costs


def _facts(decision: _Decision | None, costs: Costs | None) -> dict[str, Any]:
    """Return the fields of a `CachePlan` that depend on the decision."""
    assert decision is not None
    placement, load, budget = decision.placement, decision.load, decision.budget
    facts = {
        "bytes": budget.need,
        "passes": load.reads / load.distinct,
        "place": placement.place,
        "reason": placement.reason,
        "pays": decision.pays,
    }
    if costs is not None and placement.place in costs.places:
        read, write = costs.places[placement.place]
        advanced = 0.0 if placement.drop_old else budget.available * budget.available_depth
        facts["filling"] = load.distinct * ((load.n - advanced) * costs.block + write)
        facts["reading"] = read
    return facts


def _pays_from(n: int, costs: Costs | None) -> float | None:
    if costs is None:
        return None
    found = [break_even(n, costs, place) for place in costs.places]
    return min((passes for passes in found if passes is not None), default=None)


def probe_places(
    micro_batch: tuple[int, int], d_model: int, device: torch.device, folder: Path
) -> dict[str, tuple[float, float]]:
    """Measure the seconds to read and to write one micro-batch in each place."""
    windows, seq_len = micro_batch
    timed = max(1, min(windows, PROBE_BYTES // (WIDE * seq_len * d_model)))
    x = torch.ones(timed, seq_len, d_model, device=device)
    times = windows / timed
    return {
        place: (read * times, write * times)
        for place, (read, write) in measure_places(x, folder).items()
    }


def folder_for(settings: Trunk) -> Path:
    """Return an existing folder on the disk of the settings' folder, or of the temporary folder."""
    folder = Path(settings.folder or tempfile.gettempdir())
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())

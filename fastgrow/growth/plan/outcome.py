"""The plan as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastgrow.growth.active import StageShape
from fastgrow.growth.flops import Flops
from fastgrow.growth.plan.memory import StepBytes
from fastgrow.growth.plan.trunk_cache import CachePlan


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: its number, from 1.
        shape: what stands and what moves.
        active_parameters, total_parameters: numbers that train, and all, the table included.
        tokens: in whole steps; the most where the stage may end earlier.
        may_end_earlier: whether it has `until`.
        steps: of the optimizer.
        flops: for one token.
        weights: bytes of the parameters and of the table.
        optimizer: bytes of its state.
        best: bytes of the copy of the best weights, that training keeps in main memory.
        step: bytes of a step beyond these.
        peak: bytes on the device at the worst moment, kept rows of the trunk included.
        fits: whether the device has them now.
        seconds: of training, and of keeping the trunk; evaluations are not counted. None where it
            was not measured.
        tokens_per_second: the same.
        cache: of the frozen trunk; None where there is none.
    """

    stage: int
    shape: StageShape
    active_parameters: int
    total_parameters: int
    tokens: int
    may_end_earlier: bool
    steps: int
    flops: Flops
    weights: int
    optimizer: int
    best: int
    step: StepBytes
    peak: int
    fits: bool
    seconds: float | None
    tokens_per_second: float | None
    cache: CachePlan | None

    @property
    def total_flops(self) -> int:
        """Of the whole stage."""
        return self.tokens * self.flops.total


@dataclass(frozen=True)
class Plan:
    """All stages, and a monolith of the same shape on as many tokens.

    Attributes:
        machine: where times and memory are for.
        micro_batch: windows and tokens a window; accumulate: micro-batches a step.
        stages: in order.
        monolith: all blocks at once, everything active; None where the schedule adds no block.
        measured: whether there are times; `reason` says why not.
        on_gpu: whether bytes are of a GPU.
    """

    machine: str
    micro_batch: tuple[int, int]
    accumulate: int
    stages: list[StagePlan]
    monolith: StagePlan | None
    measured: bool
    reason: str
    on_gpu: bool

    @property
    def total_flops(self) -> int:
        return sum(stage.total_flops for stage in self.stages)

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        times = [stage.seconds for stage in self.stages]
        return None if None in times else math.fsum(t for t in times if t is not None)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, totals included."""
        return {
            **asdict(self),
            "total_flops": self.total_flops,
            "peak": self.peak,
            "seconds": self.seconds,
        }

"""The result of planning a run."""

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
    """Estimated size, memory and time of one stage.

    Attributes:
        stage: number of the stage, from 1.
        shape: depth and active set of the stage.
        active_parameters, total_parameters: number of active parameters, and of all parameters
            including the token table.
        tokens: number of tokens in whole steps; the maximum if the stage may end earlier.
        may_end_earlier: whether the stage has `until`.
        steps: number of optimizer steps.
        flops: FLOPs per token.
        weights: bytes of the parameters and the token table.
        optimizer: bytes of the optimizer state.
        best: bytes of the copy of the best weights, which is kept in host memory.
        step: bytes of a step in addition to these.
        peak: peak bytes on the device, including cached activations of the trunk that are there.
        fits: whether the device currently has that much free memory.
        seconds: time of training and of filling the activation cache, without evaluations. None if
            it was not measured.
        tokens_per_second: training speed; None if it was not measured.
        cache: plan of the trunk's activation cache; None if there is no frozen trunk.
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
        """FLOPs of the whole stage."""
        return self.tokens * self.flops.total


@dataclass(frozen=True)
class Plan:
    """Plan of all stages, and of a monolith of the final shape on the same number of tokens.

    Attributes:
        machine: description of the device that times and memory are for.
        micro_batch: number of windows in a micro-batch, and of tokens in a window.
        accumulate: number of micro-batches in a step.
        stages: plans of the stages, in order.
        monolith: all blocks from the beginning, all parameters active; None if the schedule adds no
            block.
        measured: whether times were measured.
        reason: why times were not measured.
        on_gpu: whether bytes are those of GPU memory.
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
        """Return the plan and its totals as JSON values."""
        return {
            **asdict(self),
            "total_flops": self.total_flops,
            "peak": self.peak,
            "seconds": self.seconds,
        }

"""Whole growth runs with and without an activation cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.growth.models import Shape, counted_gain, make_model, make_text
from fastgrow.growth import GrowthSchedule, Trunk, grow
from fastgrow.nn import Decoder
from fastgrow.training import TrainConfig


@dataclass(frozen=True)
class RunRow:
    """One comparison.

    Attributes:
        stages: number of stages, each of one block.
        passes: passes over the text in each stage.
        V, d, T, B: vocabulary size, width, sequence length and batch size.
        cache: where activations were cached.
        kept, recomputed: wall-clock seconds of the runs with and without a cache.
        kept_cpu, recomputed_cpu: processor seconds of all threads.
        gain: `recomputed` over `kept`.
        counted: the same ratio in counted FLOPs.
        same_bits: whether both runs ended with equal weights.
    """

    stages: int
    passes: float
    V: int
    d: int
    T: int
    B: int
    cache: str
    kept: float
    recomputed: float
    kept_cpu: float
    recomputed_cpu: float
    gain: float
    counted: float
    same_bits: bool


@dataclass(frozen=True)
class RunShape:
    """A growth run: one block per stage, `passes` passes over the text in each stage."""

    stages: int
    passes: int
    model: Shape
    cache: str = "auto"


RUNS = (
    RunShape(24, 4, Shape(V=512, B=8, windows=16)),
    RunShape(12, 4, Shape(V=512, B=8, windows=16), cache="disk"),
    RunShape(12, 1, Shape(V=512, B=8, windows=64)),
)


def measure_run(run: RunShape, folder: Path, device: torch.device) -> RunRow:
    """Grow twice from the same weights on the same text."""
    # A first run, so that one-time work of the process is not timed.
    _grow(RunShape(2, 1, run.model), "off", folder, device)
    recomputed, without = _grow(run, "off", folder, device)
    kept, with_cache = _grow(run, run.cache, folder, device)
    pairs = zip(without.state_dict().values(), with_cache.state_dict().values(), strict=True)
    shape = run.model
    return RunRow(
        stages=run.stages,
        passes=run.passes,
        V=shape.V,
        d=shape.d,
        T=shape.T,
        B=shape.B,
        cache=run.cache,
        kept=kept[0],
        recomputed=recomputed[0],
        kept_cpu=kept[1],
        recomputed_cpu=recomputed[1],
        gain=recomputed[0] / kept[0],
        counted=counted_gain(shape, run.stages, run.passes),
        same_bits=all(torch.equal(a, b) for a, b in pairs),
    )


def _grow(
    run: RunShape, cache: str, folder: Path, device: torch.device
) -> tuple[tuple[float, float], Decoder]:
    shape = run.model
    model = make_model(shape, 0).to(device)
    data = make_text(shape)
    tokens = run.passes * shape.windows * shape.T
    # One active block in every stage: the cache saves most then, and `counted_gain` assumes it.
    schedule = GrowthSchedule.blocks(run.stages, tokens=tokens, recipe="published")
    train = TrainConfig(
        schedule="per-stage", batch_size=shape.B, seq_len=shape.T, pick="last", precision="fp32"
    )
    trunk = Trunk(cache=cache, folder=str(folder))  # type: ignore[arg-type]
    wall, processor = time.perf_counter(), time.process_time()
    grow(model, data, schedule, train=train, quiet=True, trunk=trunk)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    return seconds, model

"""Measure the accuracy of `fastgrow plan`: `python -m benchmarks.planned`.

For shapes that the planner was not fitted to, the trainer runs the last stage of a schedule. FLOPs
are compared with torch's counter, the bytes of a step with the allocator's, and times of steps with
those that the plan predicts from its short calibration. Calibrations and steps alternate, and the
shortest of each is used, so that other work on the machine affects both equally. Run it on an idle
machine nevertheless.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_bytes
from fastgrow import _terminal
from fastgrow.growth import GrowthSchedule, LoRA, Stage, stage_shape
from fastgrow.growth.boundary import begin_stage
from fastgrow.growth.freeze import select_active
from fastgrow.growth.lora import merge_lora
from fastgrow.growth.plan import StagePlan, make_plan
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.ops.heads import loss_workspace
from fastgrow.training import TrainConfig, Trainer

FLOPS, BYTES, SECONDS = 0.10, 0.10, 0.25  # allowed relative errors
ROUNDS, STEPS = 3, 4


@dataclass(frozen=True)
class Shape:
    """A model and its stages, of which the last one is run."""

    name: str
    config: DecoderConfig
    stages: tuple[Stage, ...]
    batch: int


SHAPES = (
    Shape(
        "6 one-block stages, d 160",
        DecoderConfig(3_000, 160, n_head=5, max_seq_len=96),
        (Stage(),) * 6,
        batch=6,
    ),
    Shape(
        "2 + 2 blocks, LoRA below, SwiGLU, d 192",
        DecoderConfig(
            1_500, 192, n_head=6, n_kv_head=3, activation="swiglu", norm="rms_norm", max_seq_len=160
        ),
        (Stage(2), Stage(2, lora=LoRA(rank=8))),
        batch=4,
    ),
    Shape(
        "monolith of 3 blocks, d 96, V 24,000",
        DecoderConfig(24_000, 96, n_head=3, max_seq_len=128),
        (Stage(3),),
        batch=4,
    ),
)


@dataclass(frozen=True)
class Error:
    """Ratios of planned to measured values."""

    flops: float
    bytes: float
    seconds: float

    @property
    def within(self) -> bool:
        """Whether all ratios are within the allowed errors."""
        limits = ((self.flops, FLOPS), (self.bytes, BYTES), (self.seconds, SECONDS))
        return all(abs(ratio - 1) <= limit for ratio, limit in limits)


class Windows:
    """Random batches; records the times at which they are requested."""

    def __init__(self, vocabulary: int, batch: int, seq_len: int) -> None:
        self.seq_len = seq_len
        self.tokens_per_batch = batch * seq_len
        self.times: list[float] = []
        self._ids = torch.randint(vocabulary, (batch, seq_len))
        self.tokens_per_character = 1.0

    @property
    def stream(self) -> Windows:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.times.append(time.perf_counter())
        return self._ids.clone(), self._ids.clone()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def compare(shape: Shape, *, rounds: int = ROUNDS, steps: int = STEPS) -> Error:
    """Plan the last stage of a shape, run it, and compare both."""
    torch.manual_seed(0)
    seq_len = shape.config.max_seq_len
    schedule = GrowthSchedule(shape.stages)
    train = TrainConfig(batch_size=shape.batch, seq_len=seq_len, log_every=1_000)
    model = _last_stage(shape, schedule)
    active = {n: p for n, p in model.named_parameters() if p.requires_grad}
    batches = Windows(shape.config.vocab_size, shape.batch, seq_len)
    plans, steps_taken = [], []
    for _ in range(rounds):
        plans.append(make_plan(shape.config, schedule, train).stages[-1])
        batches.times.clear()
        Trainer(model, active, batches, train, steps=steps + 1).run()
        # Without the first step, which creates the optimizer's state.
        steps_taken += [b - a for a, b in itertools.pairwise(batches.times[1:])]
    ids, _ = next(batches)
    plan = plans[0]
    return Error(
        plan.flops.total * ids.numel() / _flops(model, ids),
        plan.step.peak / _peak(model, ids),
        min(_step_seconds(plan) for plan in plans) / min(steps_taken),
    )


def _last_stage(shape: Shape, schedule: GrowthSchedule) -> Decoder:
    config = shape.config
    model = Decoder(config, table=torch.randn(config.vocab_size, config.embed_width))
    for index, stage in enumerate(schedule.stages):
        merge_lora(model)
        in_stage = stage_shape(schedule, index, config)
        begin_stage(model, stage, in_stage, seed=index)
    select_active(model, in_stage)
    return model


def _step_seconds(plan: StagePlan) -> float:
    assert plan.seconds is not None
    return plan.seconds / plan.steps


def _peak(model: Decoder, ids: torch.Tensor) -> int:
    def step() -> None:
        model.loss(ids.clone(), ids.clone()).backward()

    step()
    model.zero_grad(set_to_none=True)
    return peak_bytes(step, model.device)


def _flops(model: Decoder, ids: torch.Tensor) -> int:
    """Count FLOPs with torch's counter, extended by calls that it does not support."""
    aten = torch.ops.aten
    known: dict[Any, Any] = {
        aten.addmm_: lambda total, a, b, **_: flop_counter.addmm_flop(total, a, b),
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
            flop_counter.sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda dy, q, k, v, *_, **__: (
            flop_counter.sdpa_backward_flop_count(dy, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        model.loss(ids, ids).backward()
    model.zero_grad(set_to_none=True)
    total: int = counter.get_total_flops()
    shape = ids.numel(), model.config.d_model, model.vocab_size
    loss = loss_workspace(*shape, itemsize=4, device=model.device.type, head_bytes=0)
    if loss.implementation != "eager":
        # This implementation computes the logits in chunks within one call, which torch's counter
        # does not see.
        total += 3 * 2 * ids.numel() * model.vocab_size * model.config.d_model
    return total


def main() -> int:
    """Print the table; return 1 if an error is larger than allowed."""
    errors = {shape.name: compare(shape) for shape in SHAPES}
    rows = [
        [name, *(f"{x:.3f}" for x in (e.flops, e.bytes, e.seconds)), "yes" if e.within else "NO"]
        for name, e in errors.items()
    ]
    header = ["planned / measured", "FLOPs", "bytes of a step", "time of a step", "within"]
    _terminal.show(_terminal.table(header, rows))
    print(f"allowed: {FLOPS:.0%}, {BYTES:.0%} and {SECONDS:.0%}")
    return 0 if all(error.within for error in errors.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

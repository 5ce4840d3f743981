"""The plan of a growth run: what each stage computes, keeps and takes, before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastgrow.growth.active import StageShape, active_parameters, stage_shape
from fastgrow.growth.plan.block_memory import WIDE, Rows, block_parameters
from fastgrow.growth.plan.calibrate import Bench, Speeds, active_shapes, calibrate
from fastgrow.growth.plan.flops import Flops, block_flops, stack_flops
from fastgrow.growth.plan.machine import describe_machine, free_memory
from fastgrow.growth.plan.memory import StepBytes, step_bytes
from fastgrow.growth.plan.roles import Role, roles
from fastgrow.growth.plan.trunk_cache import (
    Bandwidth,
    CachePlan,
    measure_bandwidth,
    plan_cache,
)
from fastgrow.growth.schedule import GrowthSchedule, Stage
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig
from fastgrow.training.precision import resolve_precision


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
        peak: bytes on the device at the worst moment.
        fits: whether the device has them now.
        seconds: of training, evaluations not counted; None where it was not measured.
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


def make_plan(
    config: DecoderConfig,
    schedule: GrowthSchedule,
    train: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    table_bytes: int | None = None,
    corpus_tokens: int | None = None,
    measure: bool = True,
) -> Plan:
    """Count every stage, and time its parts.

    Args:
        config: the model's; `n_layer` blocks are there before the first stage.
        schedule: the stages.
        train: how they are trained.
        device: where.
        table_bytes: of a frozen table; None for float32 numbers.
        corpus_tokens: in the training text, to tell how often it is read.
        measure: False leaves times out, and takes no time itself.
    """
    planner = _Planner(config, train, torch.device(device), table_bytes, corpus_tokens)
    cases = list(_cases(config, schedule))
    monolith = [_monolith(config, schedule)] if schedule.n_blocks else []
    reason = "not asked for"
    if measure:
        reason = planner.measure([*cases, *monolith])
    stages = [planner.stage(number, case) for number, case in enumerate(cases, 1)]
    return Plan(
        machine=describe_machine(planner.bench.device, planner.bench.dtype),
        micro_batch=(train.batch_size, planner.bench.seq_len),
        accumulate=train.accumulate,
        stages=stages,
        monolith=planner.stage(1, monolith[0]) if monolith else None,
        measured=planner.speeds is not None,
        reason=reason,
        on_gpu=planner.rows.cuda,
    )


@dataclass(frozen=True)
class _Case:
    """A stage with its shape, its blocks' roles, and the trunk of the stage before."""

    stage: Stage
    shape: StageShape
    stack: tuple[Role, ...]
    known_trunk: int


def _cases(config: DecoderConfig, schedule: GrowthSchedule) -> Sequence[_Case]:
    cases: list[_Case] = []
    for index, stage in enumerate(schedule.stages):
        shape = stage_shape(schedule, index, config, config.n_layer)
        stack = tuple(roles(shape, stage.lora, config))
        known = cases[-1].shape.n_trunk if cases else 0
        # Blocks put in below the top of a trunk make another trunk of it.
        known = known if all(new >= known for new in shape.new) else 0
        cases.append(_Case(stage, shape, stack, min(known, shape.n_trunk)))
    return cases


def _monolith(config: DecoderConfig, schedule: GrowthSchedule) -> _Case:
    """As deep as the grown model, with blocks that were there before training too."""
    whole = schedule.as_monolith()
    stage = Stage(config.n_layer + schedule.n_blocks, whole.tokens)
    shape = stage_shape(GrowthSchedule([stage]), 0, config)
    return _Case(stage, shape, tuple(roles(shape, None, config)), 0)


class _Planner:
    """What all stages of one plan have in common."""

    def __init__(
        self,
        config: DecoderConfig,
        train: TrainConfig,
        device: torch.device,
        table_bytes: int | None,
        corpus_tokens: int | None,
    ) -> None:
        self.config = config
        self.train = train
        self.corpus_tokens = corpus_tokens
        dtype = resolve_precision(train.precision, device)
        seq_len = train.seq_len or config.max_seq_len
        self.bench = Bench(config, train, seq_len, device, dtype)
        self.rows = Rows(train.batch_size * seq_len, dtype.itemsize, device.type == "cuda")
        self.speeds: Speeds | None = None
        self.bandwidth: Bandwidth | None = None
        self.memory = free_memory(device)
        floats = WIDE * config.vocab_size * config.embed_width
        trains = config.embedding == "trainable"
        self.table_bytes = floats if trains or table_bytes is None else table_bytes

    def measure(self, cases: Sequence[_Case]) -> str:
        """Time the parts of all cases; returns why it could not be done, or nothing."""
        cases = [case for case in cases if self.stage(1, case).fits]
        if not cases:
            return "no stage fits into this machine's memory"
        stack = [role for case in cases for role in case.stack]
        # What a trunk's blocks take is wanted for caching, whether or not a stage has some.
        largest = max(
            cases, key=lambda case: active_parameters(case.stage, case.shape, self.config)
        )
        self.speeds = calibrate(
            self.bench,
            [*stack, Role()],
            [case.shape.head for case in cases],
            active_shapes(self.config, largest.stack, head=largest.shape.head),
        )
        if self.speeds is None:
            return "one block on one window takes this machine too long"
        self.bandwidth = measure_bandwidth(self.bench.device)
        return ""

    def stage(self, number: int, case: _Case) -> StagePlan:
        config, train, shape = self.config, self.train, case.shape
        active = active_parameters(case.stage, shape, config)
        total = self._total(shape)
        # Not above: it counts with the FLOPs of this package.
        from fastgrow.growth.length import stage_length

        steps = stage_length(case.stage, shape, config, train, self.bench.seq_len).steps
        step = step_bytes(
            config,
            case.stack,
            self.rows,
            head=shape.head,
            final_norm=shape.final_norm,
            table=shape.table,
            accumulate=train.accumulate,
            again=train.checkpoint_activations,
        )
        low_rank = active - self._own(shape)
        weights = WIDE * (total - config.vocab_size * config.embed_width + low_rank)
        weights += self.table_bytes + WIDE * config.max_seq_len * config.head_dim
        optimizer = 2 * WIDE * active
        best = WIDE * active if train.pick == "best" else 0
        peak = weights + optimizer + step.peak + (0 if self.rows.cuda else best)
        fits = peak <= self.memory
        seconds = self._step_seconds(case, active) if fits else None
        tokens = steps * self.rows.count * train.accumulate
        return StagePlan(
            stage=number,
            shape=shape,
            active_parameters=active,
            total_parameters=total,
            tokens=tokens,
            may_end_earlier=case.stage.until is not None,
            steps=steps,
            flops=stack_flops(config, self.bench.seq_len, case.stack, head=shape.head),
            weights=weights,
            optimizer=optimizer,
            best=best,
            step=step,
            peak=peak,
            fits=fits,
            seconds=None if seconds is None else seconds * steps,
            tokens_per_second=None if seconds is None else tokens / steps / seconds,
            cache=self._cache(case, tokens),
        )

    def _total(self, shape: StageShape) -> int:
        config = self.config
        numbers = shape.depth * block_parameters(config)
        numbers += config.vocab_size * (config.d_model + config.head_bias + config.embed_width)
        return numbers + config.d_model * (2 if config.norm == "layer_norm" else 1)

    def _own(self, shape: StageShape) -> int:
        """Numbers that train and are not of low-rank corrections."""
        return active_parameters(Stage(), shape, self.config)

    def _step_seconds(self, case: _Case, active: int) -> float | None:
        """Of one step of the optimizer."""
        if self.speeds is None:
            return None
        token = sum(self.speeds.blocks[role] for role in case.stack)
        micro_batch = self.rows.count * token + self.speeds.heads[case.shape.head]
        return self.train.accumulate * micro_batch + self.speeds.update * active

    def _cache(self, case: _Case, tokens: int) -> CachePlan | None:
        trunk = case.shape.n_trunk
        if not trunk:
            return None
        block = None if self.speeds is None else self.speeds.blocks[Role()]
        once = block_flops(self.config, self.bench.seq_len, Role())
        return plan_cache(
            # The residual stream is float32 under autocast too.
            bytes_per_token=WIDE * self.config.d_model,
            saved_flops=trunk * once.forward,
            tokens=tokens,
            corpus_tokens=self.corpus_tokens,
            free_memory=self.memory,
            trunk_seconds=None if block is None else trunk * block,
            new_seconds=None if block is None else (trunk - case.known_trunk) * block,
            bandwidth=self.bandwidth,
        )

"""Plan a growth run: FLOPs, memory and time of each stage, without building the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastgrow.growth.active import StageShape, active_parameters, stage_shape
from fastgrow.growth.flops import block_flops, stack_flops
from fastgrow.growth.length import stage_length
from fastgrow.growth.plan.block_memory import WIDE, MicroBatch, block_parameters
from fastgrow.growth.plan.calibrate import Bench, Speeds, active_shapes, calibrate
from fastgrow.growth.plan.machine import describe_machine, free_memory
from fastgrow.growth.plan.memory import step_bytes
from fastgrow.growth.plan.outcome import Plan, StagePlan
from fastgrow.growth.plan.trunk_cache import (
    CachePlan,
    Rates,
    folder_for,
    plan_caches,
    probe_places,
)
from fastgrow.growth.roles import Role, products, roles
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.sharing import frozen_copies
from fastgrow.growth.stage import Stage
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.costs import Costs, free_bytes
from fastgrow.growth.trunk.placement import StageLoad, stage_loads
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig
from fastgrow.training.precision import resolve_precision


def make_plan(
    config: DecoderConfig,
    schedule: GrowthSchedule,
    train: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    table_bytes: int | None = None,
    corpus_tokens: int | None = None,
    measure: bool = True,
    trunk: Trunk | None = None,
) -> Plan:
    """Estimate FLOPs and memory of every stage, and time its parts.

    Args:
        config: configuration of the model; `n_layer` is its depth before the first stage.
        schedule: the stages.
        train: training settings.
        device: device to plan for.
        table_bytes: bytes of a frozen token table; None for a float32 table.
        corpus_tokens: number of tokens of the training text, for the number of epochs; None if
            unknown.
        measure: whether to time the parts of a step on this machine.
        trunk: trunk settings, as for `grow`. Memory and time include cached activations; None for
            no cache. A quantized trunk is assumed to be as fast as the model itself.
    """
    planner = _Planner(config, train, torch.device(device), table_bytes, trunk)
    cases = _cases(config, schedule)
    monolith = [_monolith(config, schedule)] if schedule.n_blocks else []
    reason = "not requested"
    if measure:
        reason = planner.measure([*cases, *monolith])
    caches = planner.caches(cases, corpus_tokens)
    stages = [
        planner.stage(number, case, cache)
        for number, (case, cache) in enumerate(zip(cases, caches, strict=True), 1)
    ]
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
    """A stage with its shape and the roles of its blocks."""

    stage: Stage
    shape: StageShape
    stack: tuple[Role, ...]
    is_last: bool


def _cases(config: DecoderConfig, schedule: GrowthSchedule) -> list[_Case]:
    cases = []
    for index, stage in enumerate(schedule.stages):
        shape = stage_shape(schedule, index, config, config.n_layer)
        is_last = index + 1 == len(schedule.stages)
        cases.append(_Case(stage, shape, tuple(roles(shape, stage.lora, config)), is_last))
    return cases


def _monolith(config: DecoderConfig, schedule: GrowthSchedule) -> _Case:
    """Return the monolith of the grown model's final depth, including blocks it started with."""
    whole = schedule.as_monolith()
    stage = Stage(config.n_layer + schedule.n_blocks, whole.tokens)
    shape = stage_shape(GrowthSchedule([stage]), 0, config)
    return _Case(stage, shape, tuple(roles(shape, None, config)), is_last=True)


class _Planner:
    """Plans stages with the settings that all stages share."""

    def __init__(
        self,
        config: DecoderConfig,
        train: TrainConfig,
        device: torch.device,
        table_bytes: int | None,
        trunk: Trunk | None,
    ) -> None:
        self.config = config
        self.train = train
        self.trunk = trunk or Trunk(cache="off")
        dtype = resolve_precision(train.precision, device)
        seq_len = train.seq_len or config.max_seq_len
        self.bench = Bench(config, train, seq_len, device, dtype)
        self.rows = MicroBatch(train.batch_size * seq_len, dtype.itemsize, device.type == "cuda")
        self.speeds: Speeds | None = None
        self.costs: Costs | None = None
        self.memory = free_memory(device)
        floats = WIDE * config.vocab_size * config.embed_width
        trains = config.embedding == "trainable"
        self.table_bytes = floats if trains or table_bytes is None else table_bytes

    def measure(self, cases: Sequence[_Case]) -> str:
        """Time the parts of all cases; return the reason if that is not possible, otherwise ""."""
        cases = [case for case in cases if self.stage(1, case).fits]
        if not cases:
            return "no stage fits into this machine's memory"
        stack = [role for case in cases for role in case.stack]
        # Role(), a block of the trunk, is always timed: the time of the trunk is needed to decide
        # about the activation cache.
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
        if any(case.shape.n_trunk for case in cases):
            folder, bench = folder_for(self.trunk), self.bench
            places = probe_places(self._windows, self.config.d_model, bench.device, folder)
            self.costs = Costs(self.rows.count * self.speeds.blocks[Role()], places)
        return ""

    def caches(self, cases: Sequence[_Case], corpus_tokens: int | None) -> list[CachePlan | None]:
        """Plan the activation cache of each stage."""
        folder, device = folder_for(self.trunk), self.bench.device
        rates = Rates(
            self.trunk,
            self._windows,
            device,
            lambda place: free_bytes(place, device, folder),
            self.costs,
        )
        return plan_caches(
            self.config,
            [case.shape.n_trunk for case in cases],
            block_flops(self.config, self.bench.seq_len, Role()).forward,
            None if corpus_tokens is None else self._loads(cases, corpus_tokens),
            rates,
        )

    @property
    def _windows(self) -> tuple[int, int]:
        """Number of windows in a micro-batch, and of tokens in a window."""
        return self.train.batch_size, self.bench.seq_len

    def _loads(self, cases: Sequence[_Case], corpus_tokens: int) -> list[StageLoad]:
        seq_len = self.bench.seq_len
        return stage_loads(
            [case.stage for case in cases],
            [case.shape for case in cases],
            self.config,
            self.train,
            n_windows=max(1, -(-(corpus_tokens - 1) // seq_len)),
            seq_len=seq_len,
        )

    def stage(self, number: int, case: _Case, cache: CachePlan | None = None) -> StagePlan:
        """Plan one stage."""
        config, train, shape = self.config, self.train, case.shape
        active = active_parameters(case.stage, shape, config)
        total = self._total(shape)
        steps = stage_length(case.stage, shape, config, train, self.bench.seq_len).steps
        step = step_bytes(
            config,
            case.stack,
            self.rows,
            head=shape.head,
            final_norm=shape.final_norm,
            table=shape.table,
            accumulate=train.accumulate,
            recompute=train.checkpoint_activations,
        )
        low_rank = active - self._own(shape)
        weights = WIDE * (total - config.vocab_size * config.embed_width + low_rank)
        weights += self.table_bytes + WIDE * config.max_seq_len * config.head_dim
        weights -= WIDE * len(frozen_copies(case.stage, shape)) * block_parameters(config)
        optimizer = WIDE * (2 * active - self._by_muon(shape))
        # If stages share a learning-rate schedule, only the last one restores the best weights.
        picks = train.pick == "best" and (case.is_last or train.schedule == "per-stage")
        best = WIDE * active if picks else 0
        peak = weights + optimizer + step.peak + (0 if self.rows.cuda else best)
        peak += self._on_device(cache)
        fits = peak <= self.memory
        seconds = self._seconds(case, active, steps, cache) if fits else None
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
            seconds=seconds,
            tokens_per_second=None if seconds is None else tokens / seconds,
            cache=cache,
        )

    def _total(self, shape: StageShape) -> int:
        config = self.config
        numbers = shape.depth * block_parameters(config)
        numbers += config.vocab_size * (config.d_model + config.head_bias + config.embed_width)
        return numbers + config.d_model * (2 if config.norm == "layer_norm" else 1)

    def _own(self, shape: StageShape) -> int:
        """Return the number of active parameters without LoRA adapters."""
        return active_parameters(Stage(), shape, self.config)

    def _by_muon(self, shape: StageShape) -> int:
        """Return the number of parameters of Muon, which stores one moment instead of two."""
        if self.train.optimizer != "muon":
            return 0
        matrices = sum(layer.inputs * layer.outputs for layer in products(self.config))
        return len(shape.trained) * matrices

    def _on_device(self, cache: CachePlan | None) -> int:
        """Return the bytes of cached activations on the model's device."""
        if cache is None:
            return 0
        return cache.kept if cache.place == ("device" if self.rows.cuda else "ram") else 0

    def _seconds(
        self, case: _Case, active: int, steps: int, cache: CachePlan | None
    ) -> float | None:
        """Estimate the time of all steps and of filling the activation cache before them."""
        if self.speeds is None:
            return None
        filling, trunk = 0.0, self.rows.count * sum(self._blocks(case.stack[: case.shape.n_trunk]))
        if cache is not None and cache.kept:
            filling, trunk = cache.filling, cache.reading
        above = self.rows.count * sum(self._blocks(case.stack[case.shape.n_trunk :]))
        micro_batch = trunk + above + self.speeds.heads[case.shape.head]
        step = self.train.accumulate * micro_batch + self.speeds.update * active
        return filling + steps * step

    def _blocks(self, stack: Sequence[Role]) -> list[float]:
        """Return the seconds per token of each block."""
        assert self.speeds is not None
        return [self.speeds.blocks[role] for role in stack]

"""The plan as data: parameters, bytes, times, and the monolith for comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json

import pytest
from steps import KINDS, make_step

from fastgrow.growth import Budget, GrowthSchedule, LoRA, Plateau, Stage
from fastgrow.growth.plan import make_plan
from fastgrow.growth.plan import plan as planning
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig
from fastgrow.training.optimizer import Optimizer
from fastgrow.training.precision import cpu_has_bf16

CONFIG = DecoderConfig(300, 64, n_head=4, n_embed=32, max_seq_len=32)
TRAIN = TrainConfig(batch_size=4, seq_len=32)
THREE = GrowthSchedule([Stage(1, 1_000)] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_optimizer_are_counted_exactly(kind: str) -> None:
    step = make_step(KINDS[kind])
    stage = make_plan(step.config, step.schedule, TRAIN, measure=False).stages[-1]
    assert stage.active_parameters == sum(p.numel() for p in step.active.values())
    low_rank = sum(p.numel() for n, p in step.active.items() if ".lora_" in n)
    assert stage.total_parameters == step.model.num_parameters() - low_rank
    tensors = [*step.model.parameters(), *step.model.buffers()]
    # Frozen copies share the memory of their originals.
    memory = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    assert stage.weights == sum(memory.values())
    step.loss().backward()
    for train in (TRAIN, dataclasses.replace(TRAIN, optimizer="muon")):
        optimizer = Optimizer(step.active, train)
        optimizer.step()
        held = [t for values in optimizer.state_dict().values() for t in values.values() if t.dim()]
        planned = make_plan(step.config, step.schedule, train, measure=False).stages[-1]
        assert planned.optimizer == sum(t.nbytes for t in held)


def test_the_best_weights_are_kept_in_stages_that_pick() -> None:
    """By the last stage of a run that shares a schedule, and by each stage that has its own."""
    for schedule, kept in (("wsd", [False, False, True]), ("per-stage", [True] * 3)):
        plan = make_plan(CONFIG, THREE, TrainConfig(schedule=schedule), measure=False)
        assert [stage.best > 0 for stage in plan.stages] == kept


def test_tokens_are_whole_steps() -> None:
    train = TrainConfig(batch_size=4, seq_len=32, accumulate=2)
    stage = make_plan(CONFIG, THREE, train, measure=False).stages[0]
    assert (stage.steps, stage.tokens) == (4, 1_024)
    assert stage.total_flops == 1_024 * stage.flops.total


def test_old_blocks_are_counted() -> None:
    config = DecoderConfig(300, 64, n_layer=2, n_head=4, max_seq_len=32)
    plan = make_plan(config, GrowthSchedule([Stage(1)]), TRAIN, measure=False)
    assert (plan.stages[0].shape.depth, plan.stages[0].shape.n_trunk) == (3, 2)
    assert plan.monolith is not None
    assert (plan.monolith.shape.depth, plan.monolith.shape.n_trunk) == (3, 0)


def test_growing_costs_less_than_a_monolith() -> None:
    plan = make_plan(CONFIG, THREE, TRAIN, measure=False)
    assert plan.monolith is not None
    assert plan.monolith.tokens == 3_072
    # Forward 1, 2 and 3 blocks and backward one of them, against three of either.
    block = plan.stages[1].flops.forward - plan.stages[0].flops.forward
    own = plan.stages[0].flops.total - block
    assert plan.total_flops == 1_024 * (3 * own + (1 + 2 + 3) * block)
    assert plan.total_flops < plan.monolith.total_flops
    assert plan.peak < plan.monolith.peak


def test_a_schedule_without_new_blocks_has_no_monolith() -> None:
    config = DecoderConfig(300, 64, n_layer=2, n_head=4, max_seq_len=32)
    schedule = GrowthSchedule([Stage(0, lora=LoRA(rank=2))])
    assert make_plan(config, schedule, TRAIN, measure=False).monolith is None


def test_a_stage_that_may_end_earlier_is_marked() -> None:
    schedule = GrowthSchedule([Stage(1), Stage(1, until=Plateau())])
    stages = make_plan(CONFIG, schedule, TRAIN, measure=False).stages
    assert [stage.may_end_earlier for stage in stages] == [False, True]


def test_a_budget_of_flops_makes_a_stage_shorter() -> None:
    free = make_plan(CONFIG, THREE, TRAIN, measure=False).stages[0]
    half = GrowthSchedule([Stage(1, 1_000, until=Budget(flops=free.total_flops / 2))])
    stage = make_plan(CONFIG, half, TRAIN, measure=False).stages[0]
    assert (free.steps, stage.steps) == (8, 4)
    assert stage.total_flops == free.total_flops / 2


def test_times_are_of_the_parts_that_run() -> None:
    plan = make_plan(CONFIG, THREE, TRAIN)
    assert plan.measured
    seconds = [stage.seconds for stage in plan.stages]
    assert all(s is not None and s > 0 for s in seconds)
    # One frozen block more in each stage, and nothing else.
    more = [b - a for a, b in itertools.pairwise(seconds)]
    assert more[0] == pytest.approx(more[1], rel=1e-6)
    assert plan.seconds == pytest.approx(sum(seconds))
    for stage in plan.stages:
        assert stage.tokens_per_second == pytest.approx(stage.tokens / stage.seconds)
    json.dumps(plan.to_dict())


def test_too_large_for_this_machine_is_not_measured(monkeypatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 1_000)
    plan = make_plan(CONFIG, THREE, TRAIN)
    assert not plan.measured
    assert "memory" in plan.reason
    assert all(not stage.fits and stage.seconds is None for stage in plan.stages)


def test_too_slow_for_this_machine_is_not_measured(monkeypatch) -> None:
    monkeypatch.setattr("fastgrow.growth.plan.calibrate.product_speed", lambda bench: 1e3)
    plan = make_plan(CONFIG, THREE, TRAIN)
    assert not plan.measured
    assert "too long" in plan.reason


def test_bf16_counts_two_bytes_for_what_products_read() -> None:
    wide = make_plan(CONFIG, THREE, TRAIN, measure=False)
    with contextlib.nullcontext() if cpu_has_bf16() else pytest.warns(RuntimeWarning):
        train = TrainConfig(batch_size=4, seq_len=32, precision="bf16")
        narrow = make_plan(CONFIG, THREE, train, measure=False)
    assert narrow.stages[0].step.activations < 0.8 * wide.stages[0].step.activations

"""The planned activation cache is the one that the engine chooses with the same costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import LETTERS, make_model, make_train

from fastgrow.growth import GrowthSchedule, LoRA, Stage, Trunk, grow, stage_shape
from fastgrow.growth.plan import make_plan
from fastgrow.growth.plan import plan as planning
from fastgrow.growth.plan.trunk_cache import CachePlan, Rates, plan_caches
from fastgrow.growth.trunk import cache as activation_cache
from fastgrow.growth.trunk.costs import Costs
from fastgrow.growth.trunk.placement import stage_loads
from fastgrow.nn import DecoderConfig
from fastgrow.training import Batches, TextData, TrainConfig

CONFIG = DecoderConfig(300, 64, n_head=4, n_embed=32, max_seq_len=32)
TRAIN = TrainConfig(batch_size=4, seq_len=32)
THREE = GrowthSchedule([Stage(1, 4_096)] * 3)
FAST = {"ram": (0.1, 0.1), "disk": (0.3, 0.3)}
SLOW = {"ram": (0.9, 0.9), "disk": (3.0, 3.0)}
ROOM = 1 << 30

# 29 windows of 16 tokens, in micro-batches of 4.
SCHEDULES = {
    "several passes": [Stage(1, 1024), Stage(1, 1024), Stage(2, 1024), Stage(1, 192)],
    "one pass": [Stage(1, 448), Stage(1, 448), Stage(1, 448)],
    "less than one pass": [Stage(1, 128), Stage(1, 128), Stage(1, 128)],
    "a block below": [Stage(2, 448), Stage(1, 448), Stage(1, 448, at=(1,)), Stage(1, 448)],
    "the trunk adapted": [
        Stage(2, 448),
        Stage(1, 448),
        Stage(0, 448, lora=LoRA(rank=2)),
        Stage(1, 448),
        Stage(1, 448),
    ],
}
TRUNKS = {
    "auto": Trunk(),
    "no space for two": Trunk(limit=40_000),
    "no space": Trunk(limit=10_000),
    "disk": Trunk(cache="disk"),
    "device": Trunk(cache="device"),
}


@pytest.fixture(scope="module")
def text(substrate) -> TextData:
    generator = np.random.default_rng(0)
    documents = ["".join(generator.choice(list(LETTERS), 40)) for _ in range(16)]
    return TextData.from_splits(train=documents, substrate=substrate)


def planned(
    schedule: GrowthSchedule, config: DecoderConfig, text: TextData, trunk: Trunk, costs: Costs
) -> list[CachePlan | None]:
    train = make_train()
    batches = Batches(text.train, 4, 16)
    assert batches.n_windows == 29
    stages = schedule.stages
    shapes = [stage_shape(schedule, index, config) for index in range(len(stages))]
    loads = stage_loads(stages, shapes, config, train, n_windows=29, seq_len=16)
    rates = Rates(trunk, (4, 16), torch.device("cpu"), lambda place: ROOM, costs)
    return plan_caches(config, [shape.n_trunk for shape in shapes], 1, loads, rates)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("places", [FAST, SLOW], ids=["fast", "slow"])
def test_the_engine_does_what_was_planned(
    substrate, text, tmp_path: Path, monkeypatch, trunk: str, places: dict
) -> None:
    costs = Costs(block=1.0, places=places)
    monkeypatch.setattr(activation_cache, "measure_costs", lambda *arguments: costs)
    monkeypatch.setattr(activation_cache, "free_bytes", lambda *arguments: ROOM)
    for name, stages in SCHEDULES.items():
        schedule, model = GrowthSchedule(stages), make_model(substrate)
        plans = planned(schedule, model.config, text, TRUNKS[trunk], costs)
        out = tmp_path / name
        grow(model, text, schedule, train=make_train(), out=out, quiet=True, trunk=TRUNKS[trunk])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        done = [row["cache"] for row in rows if row.get("event") == "trunk" and "cache" in row]
        # The first stage has no trunk, and logs nothing.
        assert plans[0] is None
        assert done == [(p and p.place) or "off" for p in plans[1:]], name


def test_the_cases_above_are_decided_both_ways(substrate, text) -> None:
    config = make_model(substrate).config

    def places(name: str, rates: dict) -> list[str | None]:
        costs, schedule = Costs(1.0, rates), GrowthSchedule(SCHEDULES[name])
        plans = planned(schedule, config, text, Trunk(), costs)
        return [None if plan is None else plan.place for plan in plans]

    assert places("several passes", FAST) == [None, "ram", "ram", "ram"]
    assert places("one pass", FAST) == [None, "ram", "ram"]
    assert places("one pass", SLOW) == [None, None, None]
    assert places("less than one pass", FAST)[1:] == [None, None]


def test_cached_activations_count_in_memory_and_time(monkeypatch) -> None:
    def plan(trunk: Trunk | None):
        monkeypatch.setattr(planning, "probe_places", lambda *a: {"ram": (1e-7, 2e-7)})
        monkeypatch.setattr(planning, "calibrate", lambda *a: speeds)
        return make_plan(CONFIG, THREE, TRAIN, corpus_tokens=1_025, trunk=trunk).stages

    speeds = make_speeds(block=1e-5, head=1e-3)
    without, kept = plan(None), plan(Trunk(cache="ram"))
    assert without[0].seconds == kept[0].seconds
    for n, (a, b) in enumerate(zip(without, kept, strict=True)):
        assert (a.cache is None) == (n == 0)
        if a.cache is None or b.cache is None:
            continue
        # 32 windows of 32 tokens, 64 numbers of 4 bytes each.
        assert (a.cache.kept, b.cache.kept) == (0, 32 * 32 * 64 * 4)
        assert b.peak - a.peak == b.cache.kept
        assert (a.cache.passes, b.cache.passes, b.cache.place) == (4.0, 4.0, "ram")
        # 32 steps of 128 tokens: recomputed n blocks each; cached, 8 batches through one new block.
        assert a.seconds - b.seconds == pytest.approx(
            32 * (n * 128e-5 - 1e-7) - 8 * (128e-5 + 2e-7)
        )


def make_speeds(block: float, head: float):
    class Same(dict):
        def __missing__(self, role: object) -> float:
            return block

    return planning.Speeds(Same(), {True: head, False: head}, 0.0)


def test_the_plan_of_a_run_without_a_cache_reports_what_would_pay() -> None:
    rates = Rates(
        Trunk(cache="off"), (4, 32), torch.device("cpu"), lambda place: ROOM, Costs(1.0, FAST)
    )
    shapes = [stage_shape(THREE, index, CONFIG) for index in range(3)]
    loads = stage_loads(THREE.stages, shapes, CONFIG, TRAIN, n_windows=32, seq_len=32)
    second = plan_caches(CONFIG, [0, 1, 2], 10, loads, rates)[1]
    assert second is not None
    assert (second.asked, second.place, second.pays, second.kept) == (False, "ram", True, 0)


def test_an_unknown_text_leaves_the_number_of_passes_open() -> None:
    rates = Rates(Trunk(), (4, 32), torch.device("cpu"), lambda place: ROOM, Costs(1.0, FAST))
    first, second, third = plan_caches(CONFIG, [0, 1, 2], 10, None, rates)
    assert first is None
    assert second is not None
    assert third is not None
    assert (second.passes, second.bytes, second.pays) == (None, None, None)
    # A block takes 1, reading and writing 0.1 each.
    assert second.pays_from == pytest.approx(1.1 / 0.9)
    assert third.saved_flops == 2 * second.saved_flops


def test_what_was_not_measured_is_not_decided() -> None:
    stages = make_plan(CONFIG, THREE, TRAIN, measure=False, corpus_tokens=500, trunk=Trunk()).stages
    second = stages[1].cache
    assert stages[0].cache is None
    assert second is not None
    assert (second.pays, second.place, second.reason) == (None, None, "not measured")
    assert second.bytes_per_token == 4 * CONFIG.d_model
    # 499 tokens are 16 windows of 32.
    assert second.bytes == 16 * 32 * second.bytes_per_token
    half = make_plan(CONFIG, THREE, TRAIN, measure=False, trunk=Trunk(dtype="bf16")).stages[1]
    assert half.cache is not None
    assert half.cache.bytes_per_token == 2 * CONFIG.d_model

"""Schedules are data, checked when they are made."""

from __future__ import annotations

import pytest

from fastgrow.errors import ConfigError
from fastgrow.growth import Budget, GrowthSchedule, LoRA, Plateau, Stage


def test_controls_have_equal_tokens() -> None:
    schedule = GrowthSchedule([Stage(3, 100), Stage(2, 50), Stage(1, 25)])
    assert (schedule.n_blocks, schedule.tokens) == (6, 175)
    assert schedule.as_monolith().stages == (Stage(6, 175),)
    assert schedule.as_never_grown().stages == (Stage(3, 175),)


def test_controls_train_as_the_first_stage_does() -> None:
    first = Stage(2, 100, "identity", lr=3e-4, head="tied", final_norm=False)
    schedule = GrowthSchedule([first, Stage(0, 50, lora=LoRA(rank=2)), Stage(1, 25, lr=1e-5)])
    assert schedule.as_monolith().stages == (Stage(3, 175, lr=3e-4, head="tied", final_norm=False),)
    assert schedule.as_never_grown().stages == (
        Stage(2, 175, "identity", lr=3e-4, head="tied", final_norm=False),
    )


@pytest.mark.parametrize(
    ("ends", "whole"),
    [
        ((Budget(flops=1e9), Budget(flops=2e9)), Budget(flops=3e9)),
        ((Budget(seconds=10), Budget(seconds=5)), Budget(seconds=15)),
        ((Budget(flops=1e9), Budget(seconds=5)), None),
        ((Budget(flops=1e9), None), None),
        ((Plateau(), Plateau()), None),
    ],
)
def test_controls_have_the_whole_budget(ends, whole) -> None:
    schedule = GrowthSchedule([Stage(1, 100, until=until) for until in ends])
    assert schedule.as_monolith().stages == (Stage(2, 200, until=whole),)
    assert schedule.as_never_grown().stages == (Stage(1, 200, until=whole),)


def test_a_schedule_without_new_blocks_has_no_monolith() -> None:
    with pytest.raises(ConfigError, match="0 goes with lora"):
        GrowthSchedule([Stage(0, 50, lora=LoRA(rank=2))]).as_monolith()


def test_equal_stages() -> None:
    """Copies that train beside the blocks below, unless the paper's stages are asked for."""
    assert GrowthSchedule.blocks(3, tokens=7, blocks_per_stage=2, recipe="windows").stages == (
        Stage(2, 7),
        Stage(2, 7, "copy", window=4),
        Stage(2, 7, "copy", window=4),
    )
    paper = GrowthSchedule.blocks(2, tokens=7, recipe="published")
    assert paper.stages == (Stage(1, 7), Stage(1, 7))
    identity = GrowthSchedule.blocks(4, tokens=7, recipe="windows", insertion="identity")
    # There is one block below the second stage's, and two are asked for.
    assert [stage.window for stage in identity.stages] == [None, 2, 3, 3]
    assert {stage.insertion for stage in identity.stages} == {"identity"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrowthSchedule([]), "at least one stage, got none"),
        (lambda: GrowthSchedule.blocks(0, tokens=5), "at least 1 stage, got 0"),
        (
            lambda: GrowthSchedule.blocks(2, tokens=5, recipe="windows", overlap=-1),
            "expected overlap ≥ 0, got -1",
        ),
        (lambda: Stage(blocks=0), r"Stage\.blocks: 0 goes with lora.*expected at least 1 without"),
        (lambda: Stage(blocks=-1), r"Stage\.blocks: expected at least 0, got -1"),
        (lambda: Stage(train="old"), r"Stage\.train: expected 'new' or 'all' or 'none', got 'old'"),  # type: ignore[arg-type]
        (lambda: Stage(head="lost"), r"Stage\.head: expected 'keep' or"),  # type: ignore[arg-type]
        (lambda: Stage(2, at=(1,)), r"Stage\.at: expected 2 indices"),
        (lambda: Stage(2, at=(1, 0)), r"Stage\.at: expected indices from 0 on, ascending"),
        (lambda: Stage(1, at=0), r"Stage\.at: expected a sequence of indices, got 0"),  # type: ignore[arg-type]
        (lambda: Stage(1, at=(0.5,)), r"Stage\.at: expected a sequence of indices"),  # type: ignore[arg-type]
        (lambda: LoRA(1, blocks=0), r"LoRA\.blocks: expected a sequence of indices, got 0"),  # type: ignore[arg-type]
        (lambda: Stage(1, copy_of=(0,)), r"Stage\.copy_of: goes with insertion='copy'"),
        (lambda: Stage(2, window=1), r"Stage\.window: expected train='new' and at least 2"),
        (lambda: Stage(1, window=2, train="all"), r"Stage\.window: expected train='new'"),
        (lambda: Stage(1, train="none", head="tied", final_norm=False), "nothing trains"),
        (lambda: Stage(1, lora=LoRA(1, blocks="new")), r"LoRA\.blocks: .* expects train='none'"),
        (lambda: Stage(0, lora=LoRA(1, blocks="new")), r"LoRA\.blocks: .* with new blocks, got 0"),
        (lambda: LoRA(), "exactly one of rank and budget"),
        (lambda: LoRA(rank=1, budget=1), "exactly one of rank and budget"),
        (lambda: LoRA(rank=0), r"LoRA\.rank: expected at least 1, got 0"),
        (lambda: LoRA(rank=1, alpha=0.0), r"LoRA\.alpha: expected a positive number"),
        (lambda: LoRA(rank=1, targets=("mlp.side",)), r"LoRA\.targets: expected some of .*mlp.up"),
        (lambda: LoRA(rank=1, targets=()), r"LoRA\.targets: expected some of"),
        (lambda: LoRA(rank=1, blocks="old"), r"LoRA\.blocks: expected 'frozen', 'new' or"),  # type: ignore[arg-type]
        (lambda: LoRA(rank=1, blocks=(1, 1)), r"LoRA\.blocks: expected indices from 0 on"),
        (lambda: LoRA(rank=1, blocks=()), r"LoRA\.blocks: expected at least one index"),
        (lambda: Stage(tokens=0), r"Stage\.tokens: expected at least 1, got 0"),
        (lambda: Stage(lr=-1.0), r"Stage\.lr: expected a positive number"),
        (lambda: Stage(insertion="middle"), r"Stage\.insertion: expected 'random' or"),  # type: ignore[arg-type]
    ],
)
def test_senseless_schedules_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

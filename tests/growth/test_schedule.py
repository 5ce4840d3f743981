"""Schedules are data and are checked when they are created."""

from __future__ import annotations

import pytest

from fastgrow.errors import ConfigError
from fastgrow.growth import (
    Budget,
    GrowthSchedule,
    LoRA,
    Moments,
    Plateau,
    Stage,
    stage_shape,
)
from fastgrow.nn import DecoderConfig
from fastgrow.nn.insertion import copied_blocks, insertion_indices


def test_controls_have_equal_tokens() -> None:
    schedule = GrowthSchedule([Stage(3, 100), Stage(2, 50), Stage(1, 25)])
    assert (schedule.n_blocks, schedule.tokens) == (6, 175)
    assert schedule.as_monolith().stages == (Stage(6, 175),)
    assert schedule.as_never_grown().stages == (Stage(3, 175),)


def test_controls_have_the_settings_of_the_first_stage() -> None:
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
    with pytest.raises(ConfigError, match="0 is possible only with lora"):
        GrowthSchedule([Stage(0, 50, lora=LoRA(rank=2))]).as_monolith()


def test_equal_stages() -> None:
    """Copies, active together with the blocks below; or the paper's stages with "published"."""
    assert GrowthSchedule.blocks(3, tokens=7, blocks_per_stage=2, recipe="windows").stages == (
        Stage(2, 7),
        Stage(2, 7, "copy", window=4),
        Stage(2, 7, "copy", window=4),
    )
    paper = GrowthSchedule.blocks(2, tokens=7, recipe="published")
    assert paper.stages == (Stage(1, 7), Stage(1, 7))
    identity = GrowthSchedule.blocks(4, tokens=7, recipe="windows", insertion="identity")
    # The overlap is two, but there is only one block below the second stage's.
    assert [stage.window for stage in identity.stages] == [None, 2, 3, 3]
    assert {stage.insertion for stage in identity.stages} == {"identity"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrowthSchedule([]), r"stages: expected a list of length at least 1, got \[\]"),
        (lambda: GrowthSchedule.blocks(0, tokens=5), "at least 1 stage, got 0"),
        (
            lambda: GrowthSchedule.blocks(2, tokens=5, recipe="windows", overlap=-1),
            "expected overlap ≥ 0, got -1",
        ),
        (
            lambda: Stage(blocks=0),
            r"Stage\.blocks: 0 is possible only with lora.*expected at least 1 without",
        ),
        (lambda: Stage(blocks=-1), r"Stage\.blocks: expected an integer of at least 0, got -1"),
        (lambda: Stage(train="old"), r"Stage\.train: expected one of all, new, none, got 'old'"),  # type: ignore[arg-type]
        (lambda: Stage(head="lost"), r"Stage\.head: expected one of frozen, keep, "),  # type: ignore[arg-type]
        (lambda: Stage(2, at=(1,)), r"Stage\.at: expected 2 indices"),
        (lambda: Stage(2, at=(1, 0)), r"Stage\.at: expected ascending indices"),
        (lambda: Stage(1, at=0), r"Stage\.at: expected a list, or None, got 0"),  # type: ignore[arg-type]
        (lambda: Stage(1, at=(0.5,)), r"Stage\.at\[0\]: expected an integer of at least 0"),  # type: ignore[arg-type]
        (lambda: LoRA(1, blocks=0), r"LoRA\.blocks: expected .* a list of .*, got 0"),  # type: ignore[arg-type]
        (lambda: Stage(1, copy_of=(0,)), r"Stage\.copy_of: only for insertion='copy'"),
        (lambda: Stage(2, window=1), r"Stage\.window: expected train='new' and at least 2"),
        (lambda: Stage(1, window=2, train="all"), r"Stage\.window: expected train='new'"),
        (lambda: Stage(1, train="none", head="tied", final_norm=False), "nothing is active"),
        (lambda: Stage(1, lora=LoRA(1, blocks="new")), r"LoRA\.blocks: .* needs train='none'"),
        (lambda: Stage(0, lora=LoRA(1, blocks="new")), r"LoRA\.blocks: .* with new blocks, got 0"),
        (lambda: LoRA(), "exactly one of rank and budget"),
        (lambda: LoRA(rank=1, budget=1), "exactly one of rank and budget"),
        (lambda: LoRA(rank=0), r"LoRA\.rank: expected an integer of at least 1"),
        (lambda: LoRA(rank=1, alpha=0.0), r"LoRA\.alpha: expected a finite number above 0"),
        (
            lambda: LoRA(rank=1, targets=("mlp.side",)),
            r"LoRA\.targets\[0\]: expected one of .*mlp.up",
        ),
        (lambda: LoRA(rank=1, targets=()), r"LoRA\.targets: expected a list of length at least 1"),
        (lambda: LoRA(rank=1, blocks="old"), r"LoRA\.blocks: expected one of frozen, new, or"),  # type: ignore[arg-type]
        (lambda: LoRA(rank=1, blocks=(1, 1)), r"LoRA\.blocks: expected ascending indices"),
        (lambda: LoRA(rank=1, blocks=()), r"LoRA\.blocks: expected .* a list of length at least 1"),
        (lambda: Stage(tokens=0), r"Stage\.tokens: expected an integer of at least 1, got 0"),
        (lambda: Stage(lr=-1.0), r"Stage\.lr: expected a finite number above 0"),
        (lambda: Stage(insertion="middle"), r"Stage\.insertion: expected one of copy, "),  # type: ignore[arg-type]
    ],
)
def test_invalid_schedules_raise(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# -- recipes --------------------------------------------------------------------------------------


def test_doubling_copies_the_whole_stack() -> None:
    assert GrowthSchedule.doubling(6, tokens=100).stages == (
        Stage(3, 50),
        Stage(3, 50, "copy", train="all"),
    )
    # Twice, at other shares; the tokens add up in spite of rounding.
    twice = GrowthSchedule.doubling(8, tokens=1001, at=(0.1, 1 / 3))
    assert [stage.blocks for stage in twice.stages] == [2, 2, 4]
    assert [stage.tokens for stage in twice.stages] == [100, 234, 667]
    # An odd stack is halved upwards: the copies are of its top.
    odd = GrowthSchedule.doubling(5, tokens=10)
    assert [stage.blocks for stage in odd.stages] == [3, 2]
    assert copied_blocks(3, 2) == (1, 2)
    assert GrowthSchedule.doubling(1, tokens=10).stages == (Stage(1, 10),)


def test_doubling_in_the_middle_inserts_each_copy_above_its_original() -> None:
    for n_blocks, stack in ((6, [0, 0, 1, 1, 2, 2]), (5, [0, 1, 1, 2, 2])):
        first, second = GrowthSchedule.doubling(n_blocks, tokens=10, place="middle").stages
        assert second.at is not None
        new = insertion_indices(first.blocks, second.blocks, second.at)
        copies = iter(copied_blocks(first.blocks, second.blocks, second.at, second.copy_of))
        old = iter(range(first.blocks))
        assert [next(copies if i in new else old) for i in range(n_blocks)] == stack


def test_the_older_half_may_be_frozen() -> None:
    schedule = GrowthSchedule.doubling(6, tokens=100, train="new")
    config = DecoderConfig(vocab_size=16, d_model=8, n_layer=0, n_head=2, max_seq_len=8)
    shape = stage_shape(schedule, 1, config)
    assert (shape.trained, shape.n_trunk) == ((3, 4, 5), 3)


def test_a_jump_repeats_the_stack() -> None:
    assert GrowthSchedule.jump(6, tokens=100, at=0.25).stages == (
        Stage(1, 25),
        Stage(5, 75, "copy", train="all"),
    )
    first, second = GrowthSchedule.jump(7, tokens=10, start=2).stages
    assert (first.blocks, second.blocks, second.copy_of) == (2, 5, (0, 1, 0, 1, 0))


def test_gradual_blocks_copy_the_block_below() -> None:
    schedule = GrowthSchedule.gradual(6, tokens=1000)
    assert [stage.blocks for stage in schedule.stages] == [2, 1, 1, 1, 1]
    assert [stage.tokens for stage in schedule.stages] == [150, 150, 150, 150, 400]
    assert {stage.train for stage in schedule.stages[1:]} == {"all"}
    assert {stage.insertion for stage in schedule.stages[1:]} == {"copy"}
    assert copied_blocks(4, 1) == (3,)
    assert GrowthSchedule.gradual(1, tokens=7).stages == (Stage(1, 7),)
    assert [s.tokens for s in GrowthSchedule.gradual(4, tokens=9, grown_by=0.5).stages] == [2, 2, 5]


def test_gradual_windows_have_few_active_blocks() -> None:
    schedule = GrowthSchedule.gradual(6, tokens=1000, start=1, window=3, grown_by=0.75)
    assert [stage.tokens for stage in schedule.stages] == [150] * 5 + [250]
    config = DecoderConfig(vocab_size=16, d_model=8, n_layer=0, n_head=2, max_seq_len=8)
    trained = [stage_shape(schedule, index, config).trained for index in range(6)]
    assert trained == [(0,), (0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)]
    alone = GrowthSchedule.gradual(3, tokens=300, start=1, window=1)
    assert [stage_shape(alone, i, config).trained for i in range(3)] == [(0,), (1,), (2,)]


def test_the_default_recipe_is_gradual() -> None:
    assert GrowthSchedule.blocks(3, tokens=200, blocks_per_stage=2) == GrowthSchedule.gradual(
        6, tokens=600
    )


def test_a_polish_takes_its_tokens_from_every_stage() -> None:
    moments = Moments(copied="fresh")
    schedule = GrowthSchedule([Stage(1, 100), Stage(2, 50, "copy")], moments=moments)
    assert schedule.with_polish(0.1) == GrowthSchedule(
        [Stage(1, 90), Stage(2, 45, "copy"), Stage(0, 15, train="all")], moments=moments
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrowthSchedule.blocks(2, tokens=5, recipe="lost"), "recipe: expected 'gradual'"),  # type: ignore[arg-type]
        (
            lambda: GrowthSchedule.blocks(2, tokens=5, overlap=1),
            "insertion and overlap are only for recipe='windows', got recipe='gradual'",
        ),
        (lambda: GrowthSchedule.doubling(0, tokens=5), "n_blocks: expected at least 1, got 0"),
        (
            lambda: GrowthSchedule.doubling(2, tokens=5, at=(0.2, 0.4)),
            "2 blocks cannot be halved 2 times",
        ),
        (
            lambda: GrowthSchedule.doubling(8, tokens=5, at=(0.5, 0.2)),
            r"at: expected ascending shares between 0 and 1, got \[0\.5, 0\.2\]",
        ),
        (lambda: GrowthSchedule.doubling(2, tokens=9, at=1.0), "at: expected ascending shares"),
        (
            lambda: GrowthSchedule.doubling(2, tokens=1),
            "tokens: expected at least 1 per stage",
        ),
        (lambda: GrowthSchedule.doubling(2, tokens=9, place="side"), "place 'top' or 'middle'"),  # type: ignore[arg-type]
        (lambda: GrowthSchedule.doubling(2, tokens=9, train="old"), "train 'all' or 'new'"),  # type: ignore[arg-type]
        (lambda: GrowthSchedule.jump(3, tokens=9, start=3), "a start from 1 to 2 blocks, got 3"),
        (lambda: GrowthSchedule.gradual(0, tokens=9), "n_blocks: expected at least 1, got 0"),
        (lambda: GrowthSchedule.gradual(3, tokens=9, start=4), "a start from 1 to 3 blocks, got 4"),
        (
            lambda: GrowthSchedule.gradual(3, tokens=9, start=2, window=1),
            "a window of at least the 2 blocks at the start, got 1",
        ),
        (lambda: GrowthSchedule.gradual(3, tokens=9, grown_by=1), "grown_by between 0 and 1"),
        (
            lambda: GrowthSchedule.gradual(3, tokens=2),
            "tokens: expected at least 1 per stage",
        ),
        (lambda: GrowthSchedule.blocks(2, tokens=9).with_polish(1.0), "a share between 0 and 1"),
        (
            lambda: GrowthSchedule([Stage(1, 9), Stage(1, 1)]).with_polish(),
            "stage 2: expected a length in tokens, not a budget, and enough",
        ),
        (
            lambda: GrowthSchedule([Stage(1, 900, until=Budget(flops=9))]).with_polish(),
            "stage 1: expected a length in tokens",
        ),
        (lambda: GrowthSchedule.doubling(True, tokens=9), "n_blocks: expected at least 1, got Tr"),
        (lambda: GrowthSchedule.doubling("4", tokens=9), "n_blocks: expected at least 1, got '4'"),  # type: ignore[arg-type]
        (lambda: GrowthSchedule.doubling(4, tokens=9, at="0.5"), "at: expected ascending shares"),  # type: ignore[arg-type]
        (lambda: GrowthSchedule.doubling(1, tokens=9, at=7), "at: expected ascending shares"),
        (lambda: GrowthSchedule.gradual(4, tokens=float("inf")), "tokens: expected at least 1"),  # type: ignore[arg-type]
    ],
)
def test_invalid_recipes_raise(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

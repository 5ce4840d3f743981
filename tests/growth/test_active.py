"""The shape of a stage depends on the schedule and the configuration only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule, LoRA, Stage, stage_shape
from fastgrow.growth.active import active_parameters
from fastgrow.nn import Decoder, DecoderConfig

CONFIG = DecoderConfig(vocab_size=40, d_model=16, n_head=2, n_embed=8, max_seq_len=16)
TRAINABLE = replace(CONFIG, embedding="trainable")


def shape_of(stage: Stage, config: DecoderConfig = CONFIG, depth: int = 3):
    return stage_shape(GrowthSchedule([stage]), 0, config, first_depth=depth)


def test_new_blocks_norm_and_head_are_active_above_a_frozen_trunk() -> None:
    schedule = GrowthSchedule([Stage(2), Stage(1), Stage(3)])
    shapes = [stage_shape(schedule, i, CONFIG) for i in range(3)]
    assert [shape.depth for shape in shapes] == [2, 3, 6]
    assert [shape.new for shape in shapes] == [(0, 1), (2,), (3, 4, 5)]
    assert [shape.trained for shape in shapes] == [(0, 1), (2,), (3, 4, 5)]
    assert [shape.n_trunk for shape in shapes] == [0, 2, 3]
    assert all(shape.head and shape.final_norm and not shape.table for shape in shapes)
    assert all(shape.adapted == () and shape.rank is None for shape in shapes)


@pytest.mark.parametrize(
    ("stage", "new", "trained", "adapted", "n_trunk"),
    [
        (Stage(2, at=(0, 2)), (0, 3), (0, 3), (), 0),
        (Stage(2, at=(1, 1)), (1, 2), (1, 2), (), 1),
        (Stage(1, at=(3,)), (3,), (3,), (), 3),
        (Stage(1, window=3), (3,), (1, 2, 3), (), 1),
        (Stage(0, window=1), (), (2,), (), 2),
        (Stage(1, at=(0,), window=1), (0,), (0, 3), (), 0),
        (Stage(1, train="all"), (3,), (0, 1, 2, 3), (), 0),
        (Stage(0, train="all"), (), (0, 1, 2), (), 0),
        (Stage(1, train="none"), (3,), (), (), 4),
        (Stage(1, lora=LoRA(rank=2)), (3,), (3,), (0, 1, 2), 0),
        (Stage(0, lora=LoRA(rank=2)), (), (), (0, 1, 2), 0),
        (Stage(0, lora=LoRA(rank=2, blocks=(1, 2))), (), (), (1, 2), 1),
        (Stage(1, window=2, lora=LoRA(rank=2)), (3,), (2, 3), (0, 1), 0),
        (Stage(2, train="none", lora=LoRA(rank=2, blocks="new")), (3, 4), (), (3, 4), 3),
        (Stage(1, train="none", lora=LoRA(rank=2)), (3,), (), (0, 1, 2, 3), 0),
    ],
)
def test_trained_and_adapted_blocks(stage, new, trained, adapted, n_trunk) -> None:
    shape = shape_of(stage)
    assert (shape.new, shape.trained, shape.adapted) == (new, trained, adapted)
    assert shape.n_trunk == n_trunk


def test_the_trunk_ends_at_the_lowest_active_block_if_there_is_one() -> None:
    assert shape_of(Stage(1, train="none", head="keep")).n_trunk == 4


@pytest.mark.parametrize(
    ("head", "trains"), [("keep", True), ("reset", True), ("frozen", False), ("tied", False)]
)
def test_whether_head_and_norm_are_active(head, trains: bool) -> None:
    shape = shape_of(Stage(1, head=head, final_norm=trains))
    assert shape.head == shape.final_norm == trains


def test_a_trainable_table_is_active_together_with_block_0() -> None:
    schedule = GrowthSchedule([Stage(1), Stage(1), Stage(0, train="all"), Stage(1, window=3)])
    tables = [stage_shape(schedule, i, TRAINABLE).table for i in range(4)]
    assert tables == [True, False, True, True]
    assert stage_shape(schedule, 2, TRAINABLE).n_trunk == 0
    assert not any(stage_shape(schedule, i, CONFIG).table for i in range(4))
    # New blocks below the old ones, and a window down to the bottom, reach block 0 too.
    assert shape_of(Stage(1, at=(0,)), TRAINABLE).table
    assert shape_of(Stage(1, window=4), TRAINABLE).table


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, activation="swiglu", n_kv_head=1)])
def test_active_parameters_are_counted_as_in_the_model(config: DecoderConfig) -> None:
    model = Decoder(replace(config, n_layer=4), table=torch.zeros(40, 8))
    block = sum(p.numel() for p in model.blocks[0].parameters())
    head = sum(p.numel() for p in model.lm_head.parameters())
    norm = sum(p.numel() for p in model.final_norm.parameters())

    def active(stage: Stage, config: DecoderConfig = config) -> int:
        return active_parameters(stage, shape_of(stage, config), config)

    assert active(Stage(1)) == block + head + norm
    assert active(Stage(1, train="all", head="frozen", final_norm=False)) == 4 * block
    trainable = replace(config, embedding="trainable")
    assert active(Stage(0, train="all"), trainable) == 3 * block + head + norm + 40 * 8


def test_a_rank_has_18_widths_of_parameters_per_block() -> None:
    lora = Stage(0, lora=LoRA(rank=2), head="frozen", final_norm=False)
    assert active_parameters(lora, shape_of(lora), CONFIG) == 3 * 18 * 16 * 2
    some = replace(lora, lora=LoRA(rank=2, targets=("attention.out", "mlp.up")))
    assert active_parameters(some, shape_of(some), CONFIG) == 3 * (2 + 5) * 16 * 2


def test_the_rank_is_the_largest_within_the_budget() -> None:
    for budget in (5_000, 5_001, 6_000, 7_777):
        stage = Stage(0, lora=LoRA(budget=budget))
        shape = shape_of(stage)
        assert shape.rank is not None
        assert active_parameters(stage, shape, CONFIG) <= budget
        above = replace(shape, rank=shape.rank + 1)
        assert active_parameters(stage, above, CONFIG) > budget
    # All projections of this model have at most 16 rows or columns.
    assert shape_of(Stage(0, lora=LoRA(budget=10**9))).rank == 16


def test_the_long_runs_lora_phase_costs_three_blocks_at_rank_128() -> None:
    """105.0 M numbers train with three new blocks (Growing Transformers); 18 · d · r a layer."""
    config = DecoderConfig(vocab_size=65_536, d_model=1024, n_head=32, n_embed=16)
    three = stage_shape(GrowthSchedule([Stage(3)]), 0, config, first_depth=13)
    budget = active_parameters(Stage(3), three, config)
    assert budget == 104_952_832
    stage = Stage(0, lora=LoRA(budget=budget))
    shape = stage_shape(GrowthSchedule([stage]), 0, config, first_depth=16)
    assert shape.rank == 128


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(1, at=(4,)), r"stage 1: Stage\.at: there are 3 old blocks"),
        (Stage(1, insertion="copy", copy_of=(3,)), r"Stage\.copy_of: .*3 old blocks"),
        (Stage(1, insertion="copy", at=(0,)), "no block below"),
        (Stage(1, window=5), r"Stage\.window: expected at most 4, .* got 5"),
        (Stage(0, lora=LoRA(rank=2, blocks=(3,))), r"block 3 does not exist \(3 blocks\)"),
        (Stage(1, lora=LoRA(rank=2, blocks=(3,))), "block 3 is trained itself"),
        (Stage(1, train="all", lora=LoRA(rank=2)), "adapts frozen blocks, but the stage has none"),
        (Stage(0, lora=LoRA(rank=17)), r"LoRA\.rank: expected at most 16"),
        (Stage(0, lora=LoRA(budget=100)), r"LoRA\.budget: expected at least .* rank 1 864"),
        (Stage(0, lora=LoRA(rank=1, targets=("mlp.gate",))), "have no projection in"),
    ],
)
def test_impossible_stages_raise_before_training(stage: Stage, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of(stage)


def test_a_head_is_not_tied_to_an_active_table() -> None:
    with pytest.raises(ConfigError, match="cannot be tied to a token table that is trained"):
        shape_of(Stage(1, head="tied"), TRAINABLE, depth=0)
    assert not shape_of(Stage(1, head="tied"), TRAINABLE, depth=1).table

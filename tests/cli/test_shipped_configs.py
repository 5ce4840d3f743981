"""The shipped configurations make models of exactly the published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastgrow.cli.settings import GrowthSettings, read_demo, read_growth, shipped_configs
from fastgrow.growth import stage_shape
from fastgrow.growth.active import active_parameters
from fastgrow.growth.freeze import select_active
from fastgrow.nn import Decoder

# name: (blocks, total, without the table, active in the last stage). REFERENCE: Growing
# Transformers v3, tables of the nine-layer study; model cards of abs-bvv and the 16-layer run.
PUBLISHED = {
    "nine-layers-unicode": (9, 247_614_464, 180_505_600, 104_952_832),
    "nine-layers-16-bit": (9, 181_554_176, 180_505_600, 104_952_832),
    "nine-layers-trainable": (9, 247_614_464, 180_505_600, 104_952_832),
    "sixteen-layers": (16, 269_699_072, 268_650_496, None),
}


def grown(settings: GrowthSettings, n_blocks: int) -> Decoder:
    config = replace(settings.model, n_layer=n_blocks)
    table = torch.empty(config.vocab_size, config.embed_width, device="meta")
    return Decoder(config, table=table, device="meta")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_counts_are_the_published_ones(name: str) -> None:
    settings = read_growth(name, [])
    blocks, total, without_table, active = PUBLISHED[name]
    assert settings.schedule.n_blocks == blocks
    model = grown(settings, blocks)
    assert model.num_parameters(include_table=True) == total
    assert model.num_parameters(include_table=False) == without_table
    if active is not None:
        last_stage = len(settings.schedule.stages) - 1
        last = select_active(model, stage_shape(settings.schedule, last_stage, settings.model))
        assert sum(p.numel() for p in last.values()) == active


def test_abs_bvv_grows_from_1_3_to_2_3_billion() -> None:
    settings = read_growth("abs-bvv", [])
    assert settings.schedule.n_blocks == 6
    sizes = [round(grown(settings, n).num_parameters() / 1e9, 1) for n in (1, 6)]
    assert sizes == [1.3, 2.3]


def test_the_three_variants_differ_in_the_table_alone() -> None:
    unicode, codes, trainable = (
        read_growth(f"nine-layers-{name}", []) for name in ("unicode", "16-bit", "trainable")
    )
    assert unicode.schedule == codes.schedule == trainable.schedule
    assert unicode.train == codes.train == trainable.train
    assert replace(codes.model, n_embed=1024) == unicode.model
    assert replace(trainable.model, embedding="frozen") == unicode.model


def test_every_growth_configuration_is_checked_here() -> None:
    growth = {name for name in shipped_configs() if not name.startswith("demo")}
    assert growth == {*PUBLISHED, "abs-bvv"}


@pytest.mark.parametrize("name", ["demo", "demo-quick"])
def test_the_demos_controls_train_exactly_as_long(name: str) -> None:
    settings = read_demo(name, [])
    grown = settings.schedule
    steps = {
        sum(settings.train.steps_for(stage.tokens, settings.seq_len) for stage in schedule.stages)
        for schedule in (grown, grown.as_monolith(), grown.as_never_grown())
    }
    assert len(steps) == 1
    assert 0 <= grown.tokens - settings.tokens < settings.tokens_per_step


def test_a_run_of_days_is_saved_along_the_way() -> None:
    for name in {*PUBLISHED, "abs-bvv"}:
        train = read_growth(name, []).train
        assert train.checkpoint_every is not None
        assert train.eval_tokens is not None


def test_the_long_runs_lora_phases_train_as_much_as_three_blocks() -> None:
    settings = read_growth("sixteen-layers", [])
    stages = settings.schedule.stages
    phases = [i for i, stage in enumerate(stages) if stage.lora is not None]
    shapes = [stage_shape(settings.schedule, i, settings.model) for i in phases]
    assert [(shape.depth, shape.rank) for shape in shapes] == [(6, 341), (12, 170), (16, 128)]
    three = active_parameters(
        stages[0], stage_shape(settings.schedule, 0, settings.model), settings.model
    )
    assert three == PUBLISHED["nine-layers-unicode"][3]
    for i, shape in zip(phases, shapes, strict=True):
        active = active_parameters(stages[i], shape, settings.model)
        assert 0.995 * three < active <= three

"""Real steps of stages of every kind, to compare a plan with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastgrow.growth import GrowthSchedule, LoRA, Stage, StageShape, stage_shape
from fastgrow.growth.boundary import begin_stage
from fastgrow.growth.freeze import select_active
from fastgrow.growth.lora import merge_lora
from fastgrow.nn import Decoder, DecoderConfig

KINDS: dict[str, list[Stage]] = {
    "first": [Stage(2)],
    "on top": [Stage(2), Stage(1)],
    "everything": [Stage(2), Stage(1, train="all")],
    "window": [Stage(3), Stage(1, window=3)],
    "between": [Stage(3), Stage(1, at=(1,))],
    "new and LoRA below": [Stage(2), Stage(1, lora=LoRA(rank=4))],
    "LoRA alone": [Stage(3), Stage(0, lora=LoRA(rank=4))],
    "LoRA on attention": [
        Stage(3),
        Stage(1, lora=LoRA(rank=4, targets=("attention.qkv", "attention.out"))),
    ],
    "LoRA on the output": [Stage(2), Stage(0, lora=LoRA(rank=4, targets=("attention.out",)))],
    "LoRA on down": [Stage(2), Stage(0, lora=LoRA(rank=4, targets=("mlp.down",)))],
    "LoRA on up": [Stage(2), Stage(0, lora=LoRA(rank=4, targets=("mlp.up",)))],
    "LoRA in the middle": [Stage(3), Stage(1, lora=LoRA(rank=4, blocks=(1,)))],
    "copies at rest": [
        Stage(2),
        Stage(2, insertion="copy", train="none", lora=LoRA(rank=4, blocks="new")),
    ],
    "head at rest": [Stage(1), Stage(1, head="frozen")],
    "norm at rest": [Stage(1), Stage(1, final_norm=False)],
}


@dataclass
class Step:
    """A model in the last stage of a schedule, and a micro-batch for it."""

    config: DecoderConfig
    schedule: GrowthSchedule
    shape: StageShape
    model: Decoder
    active: dict[str, nn.Parameter]
    ids: torch.Tensor

    @property
    def stage(self) -> Stage:
        return self.schedule.stages[-1]

    def loss(self) -> torch.Tensor:
        return self.model.loss(self.ids.clone(), self.ids.clone())


def make_step(
    stages: list[Stage],
    *,
    d: int = 64,
    heads: int = 4,
    vocabulary: int = 300,
    batch: int = 2,
    seq_len: int = 32,
    **options: object,
) -> Step:
    """Return the last stage of the schedule, started."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=vocabulary,
        d_model=d,
        n_head=heads,
        max_seq_len=seq_len,
        n_embed=d,
        **options,  # type: ignore[arg-type]
    )
    schedule = GrowthSchedule(stages)
    model = Decoder(config, table=torch.randn(vocabulary, d))
    for index, stage in enumerate(schedule.stages):
        merge_lora(model)
        shape = stage_shape(schedule, index, config)
        begin_stage(model, stage, shape, seed=index)
    active = select_active(model, shape)
    ids = torch.randint(vocabulary, (batch, seq_len))
    return Step(config, schedule, shape, model, active, ids)

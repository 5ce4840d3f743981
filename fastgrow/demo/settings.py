"""The settings of the demo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from fastgrow._checked import PositiveFloat, PositiveInt, check_types
from fastgrow.growth import GrowthSchedule
from fastgrow.training import TrainConfig

SCRIPTS = ("Latin", "Cyrillic", "Han")


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo. The package contains configs/demo.yaml and configs/demo-quick.yaml.

    Attributes:
        blocks: final number of blocks of each specialist.
        tokens: training tokens of each specialist, rounded up to whole steps.
        d_model, n_head, seq_len: shape of the models; d_model is also the width of the token table.
        batch_size: windows per step.
        lr: peak learning rate.
        eval_tokens: validation tokens of one evaluation. There are about eighteen, of which the
            best selects the weights.
        test_tokens: tokens of each test text; None selects all.
        seed: random seed of the weights, the data order and the samples.
        own_share: share of a specialist's windows from its own script. The other windows are from
            the mix of all scripts, because the experts share some text in the paper too.
    """

    blocks: PositiveInt
    tokens: PositiveInt
    d_model: PositiveInt
    n_head: PositiveInt
    seq_len: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    eval_tokens: PositiveInt
    test_tokens: PositiveInt | None = None
    seed: int = 0
    own_share: Annotated[float, Meta(gt=0, lt=1)] = 0.8

    def __post_init__(self) -> None:
        check_types(self)
        # Both check their arguments: an error here comes before the substrate is drawn.
        _ = self.schedule, self.train

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.tokens_per_step)

    @property
    def schedule(self) -> GrowthSchedule:
        # In whole steps: rounding up each stage would give the grown models more tokens than their
        # controls, which have one long stage.
        steps = GrowthSchedule.gradual(self.blocks, tokens=self.steps)
        stages = [
            replace(stage, tokens=stage.tokens * self.tokens_per_step) for stage in steps.stages
        ]
        return replace(steps, stages=stages)

    @property
    def train(self) -> TrainConfig:
        return TrainConfig(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            lr=self.lr,
            eval_every=max(1, self.steps // 18),
            eval_tokens=self.eval_tokens,
            checkpoint_every=max(1, self.steps // 6),
            seed=self.seed,
            pick="best",
        )

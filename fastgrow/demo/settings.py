"""The settings of the demo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthSchedule
from fastgrow.training import TrainConfig

SCRIPTS = ("Latin", "Cyrillic", "Han")


@dataclass(frozen=True)
class DemoSettings:
    """What one run of the demo does; configs/demo.yaml and configs/demo-quick.yaml ship.

    Attributes:
        blocks: of each specialist at the end.
        tokens: training tokens of each, rounded up to whole steps.
        d_model, n_head, seq_len: shape of the models; the frozen table is d_model wide.
        batch_size: windows in a step.
        lr: peak learning rate.
        eval_tokens: validation tokens that pick the checkpoint, read eighteen times.
        test_tokens: of each test text; None reads all.
        seed: of weights, data order and samples.
        own_share: share of a specialist's windows from its own script. As in the paper the experts
            share some text: the rest comes from the mix of all scripts.
    """

    blocks: int
    tokens: int
    d_model: int
    n_head: int
    seq_len: int
    batch_size: int
    lr: float
    eval_tokens: int
    test_tokens: int | None = None
    seed: int = 0
    own_share: float = 0.8

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.own_share < 1:
            raise ConfigError(f"own_share: expected between 0 and 1, got {self.own_share}")
        # Both refuse what is out of range; better here than after the substrate has been drawn.
        _ = self.schedule, self.train

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.tokens_per_step)

    @property
    def schedule(self) -> GrowthSchedule:
        # Made of whole steps: rounding up each stage would give the grown models more than their
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

"""The sizes of the demo, chosen so that two cores finish it within minutes."""

from __future__ import annotations

from dataclasses import dataclass

from fastgrow.growth import GrowthSchedule
from fastgrow.training import TrainConfig

SCRIPTS = ("Latin", "Cyrillic", "Han")


@dataclass(frozen=True)
class DemoSettings:
    """What one run of the demo does; `FULL` and `QUICK` are the two that ship."""

    stages: int
    tokens_per_stage: int
    d_model: int
    n_head: int
    seq_len: int
    batch_size: int
    lr: float
    seed: int = 0
    # As in the paper, the experts share some text: a fifth of what each reads is the mix.
    own_share: float = 0.8

    @property
    def schedule(self) -> GrowthSchedule:
        return GrowthSchedule.blocks(self.stages, tokens=self.tokens_per_stage)

    @property
    def train(self) -> TrainConfig:
        steps = self.tokens_per_stage // (self.batch_size * self.seq_len)
        return TrainConfig(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            lr=self.lr,
            eval_every=max(1, steps // 6),
            checkpoint_every=max(1, steps // 2),
            seed=self.seed,
            pick="best",
        )


FULL = DemoSettings(
    stages=3,
    tokens_per_stage=100_000,
    d_model=128,
    n_head=4,
    seq_len=128,
    batch_size=8,
    lr=2e-3,
)
QUICK = DemoSettings(
    stages=3,
    tokens_per_stage=12_000,
    d_model=64,
    n_head=2,
    seq_len=64,
    batch_size=8,
    lr=3e-3,
)

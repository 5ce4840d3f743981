"""What to grow and when: stages, and schedules made of them.

A schedule is plain data. The controls that a grown model is judged against are schedules too, so
that one function (`fastgrow.grow`) runs all three and they differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastgrow.errors import ConfigError

Insertion = Literal["random", "identity"]


@dataclass(frozen=True)
class Stage:
    """One stage of growth: stack new blocks, then train them with the final norm and the head.

    Args:
        blocks: new blocks stacked on top of what is there, at least 1.
        tokens: training tokens of the stage (targets seen by the optimizer), at least 1. Rounded up
            to whole optimizer steps.
        insertion: `"random"` as in the paper (Growing Transformers §3), or `"identity"`: the new
            blocks' output projections start at zero, so the model computes what it did before.
        lr: peak learning rate of this stage; None takes the run's.

    Raises:
        ConfigError: a value is out of range.
    """

    blocks: int = 1
    tokens: int = 1_000_000
    insertion: Insertion = "random"
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"Stage.blocks: expected at least 1, got {self.blocks}")
        if self.tokens < 1:
            raise ConfigError(f"Stage.tokens: expected at least 1, got {self.tokens}")
        if self.insertion not in ("random", "identity"):
            raise ConfigError(
                f"Stage.insertion: expected 'random' or 'identity', got {self.insertion!r}"
            )
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"Stage.lr: expected a positive number, got {self.lr}")


@dataclass(frozen=True)
class GrowthSchedule:
    """The stages of a run, in order.

    Raises:
        ConfigError: there is no stage.
    """

    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ConfigError("GrowthSchedule.stages: expected at least one stage, got none")

    @classmethod
    def blocks(
        cls,
        n_stages: int,
        *,
        tokens: int,
        blocks_per_stage: int = 1,
        insertion: Insertion = "random",
    ) -> GrowthSchedule:
        """`n_stages` equal stages of `blocks_per_stage` new blocks and `tokens` tokens each."""
        if n_stages < 1:
            raise ConfigError(f"GrowthSchedule.blocks: expected at least 1 stage, got {n_stages}")
        return cls([Stage(blocks_per_stage, tokens, insertion)] * n_stages)

    @property
    def n_blocks(self) -> int:
        """Blocks that the whole schedule adds."""
        return sum(stage.blocks for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Training tokens of the whole schedule."""
        return sum(stage.tokens for stage in self.stages)

    def as_monolith(self) -> GrowthSchedule:
        """The control of equal depth and equal tokens: all blocks at once, everything active."""
        return GrowthSchedule([Stage(self.n_blocks, self.tokens)])

    def as_never_grown(self) -> GrowthSchedule:
        """The control that stops growing: the first stage's blocks, trained on all the tokens."""
        return GrowthSchedule([Stage(self.stages[0].blocks, self.tokens)])

"""What the stages of a schedule ask of their trunks, counted from shapes alone."""

from __future__ import annotations

from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.trunk.choice import StageLoad
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig


def stage_loads(
    schedule: GrowthSchedule,
    first: int,
    config: DecoderConfig,
    train: TrainConfig,
    *,
    first_depth: int,
    seq_len: int,
    n_windows: int,
) -> list[StageLoad]:
    """The loads of the stages from `first` on.

    Args:
        schedule: all stages.
        first: index of the first stage to describe.
        config: the model's.
        train: batch sizes.
        first_depth: blocks that the model had before the first stage of all.
        seq_len: tokens in a window.
        n_windows: windows of the training text.
    """
    loads = []
    for index in range(first, len(schedule.stages)):
        shape = stage_shape(schedule, index, config, first_depth)
        before = stage_shape(schedule, index - 1, config, first_depth) if index else None
        steps = train.steps_for(schedule.stages[index].tokens, seq_len)
        reads = steps * train.accumulate
        windows = min(reads * train.batch_size, n_windows)
        loads.append(
            StageLoad(
                n=shape.n_trunk,
                reads=reads,
                rows=windows / train.batch_size,
                share=windows / n_windows,
                grown=before is not None and _grew(before, shape),
            )
        )
    return loads


def _grew(before: StageShape, now: StageShape) -> bool:
    """Whether the trunk of a stage is that of the one before with blocks on top."""
    untouched = min(now.new, default=now.depth) >= before.n_trunk
    return 0 < before.n_trunk <= now.n_trunk and untouched

"""What the stages of a schedule ask of their trunks, counted from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.growth.active import StageShape
from fastgrow.growth.length import stage_length
from fastgrow.growth.stage import Stage
from fastgrow.growth.trunk.choice import StageLoad
from fastgrow.nn import DecoderConfig
from fastgrow.training import TrainConfig


def stage_loads(
    stages: Sequence[Stage],
    shapes: Sequence[StageShape],
    config: DecoderConfig,
    train: TrainConfig,
    *,
    n_windows: int,
    seq_len: int,
) -> list[StageLoad]:
    """The loads of stages that follow each other; the most that they read where they have `until`.

    Args:
        stages, shapes: of the stage that begins and those after it.
        config: the model's.
        train: batch sizes.
        n_windows: of the text, that all stages read.
        seq_len: tokens in a window.
    """
    loads = []
    for index, (stage, shape) in enumerate(zip(stages, shapes, strict=True)):
        steps = stage_length(stage, shape, config, train, seq_len).steps
        reads = steps * train.accumulate
        windows = min(reads * train.batch_size, n_windows)
        loads.append(
            StageLoad(
                n=shape.n_trunk,
                reads=reads,
                rows=windows / train.batch_size,
                share=windows / n_windows,
                grown=index > 0 and _grew(shapes[index - 1], shape),
            )
        )
    return loads


def _grew(before: StageShape, now: StageShape) -> bool:
    """Whether the trunk of a stage is that of the one before with blocks on top."""
    untouched = min(now.new, default=now.depth) >= before.n_trunk
    return 0 < before.n_trunk <= now.n_trunk and untouched

"""Copies that rest hold no memory of their own: a stack of depth by recursion costs one block.

Source: relaxed recursive Transformers (arXiv 2410.20672, §2): one block at several depths, told
apart by the low-rank corrections of each.
"""

from __future__ import annotations

from fastgrow.growth.active import StageShape, copied_from
from fastgrow.growth.stage import Stage
from fastgrow.nn import Decoder


def frozen_copies(stage: Stage, shape: StageShape) -> dict[int, int]:
    """The new blocks that keep being copies through a stage, and the block that each copies.

    Both are indices in the stage's stack. What is adapted rests: its corrections train beside it.
    """
    originals = {copy: shape.old[source] for copy, source in copied_from(stage, shape).items()}
    return {
        copy: original
        for copy, original in originals.items()
        if copy not in shape.trained and original not in shape.trained
    }


def share_copies(model: Decoder, stage: Stage, shape: StageShape) -> None:
    """Let resting copies read the weights that they copy."""
    for copy, source in frozen_copies(stage, shape).items():
        theirs = dict(model.blocks[source].named_parameters())
        for name, parameter in model.blocks[copy].named_parameters():
            if not name.endswith((".lora_A", ".lora_B")):
                parameter.data = theirs[name].data


def separate_blocks(model: Decoder) -> None:
    """Give every block weights of its own again, to the same bits."""
    seen = set()
    for parameter in model.blocks.parameters():
        if parameter.data_ptr() in seen:
            parameter.data = parameter.data.clone()
        seen.add(parameter.data_ptr())

"""Shared weights of frozen copies: several copies of one block take the memory of one block.

Source: relaxed recursive Transformers (arXiv 2410.20672, §2): one block at several depths, each
with separate low-rank corrections.
"""

from __future__ import annotations

from fastgrow.growth.active import StageShape, copied_from
from fastgrow.growth.stage import Stage
from fastgrow.nn import Decoder


def frozen_copies(stage: Stage, shape: StageShape) -> dict[int, int]:
    """Return the new blocks that stay equal to their originals in a stage, with these originals.

    Keys and values are indices in the stage. Blocks with LoRA are among them: their own weights are
    frozen, only the corrections are active.
    """
    originals = {copy: shape.old[source] for copy, source in copied_from(stage, shape).items()}
    return {
        copy: original
        for copy, original in originals.items()
        if copy not in shape.trained and original not in shape.trained
    }


def share_copies(model: Decoder, stage: Stage, shape: StageShape) -> None:
    """Let frozen copies use the weight tensors of their originals."""
    for copy, source in frozen_copies(stage, shape).items():
        originals = dict(model.blocks[source].named_parameters())
        for name, parameter in model.blocks[copy].named_parameters():
            if not name.endswith((".lora_A", ".lora_B")):
                parameter.data = originals[name].data


def separate_blocks(model: Decoder) -> None:
    """Give every block separate weight tensors again, with the same bits."""
    seen = set()
    for parameter in model.blocks.parameters():
        if parameter.data_ptr() in seen:
            parameter.data = parameter.data.clone()
        seen.add(parameter.data_ptr())

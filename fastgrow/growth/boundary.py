"""What happens to a model between two stages."""

from __future__ import annotations

import torch

from fastgrow.growth.active import StageShape
from fastgrow.growth.lora import attach_lora
from fastgrow.growth.sharing import share_copies
from fastgrow.growth.stage import Stage
from fastgrow.nn import Decoder
from fastgrow.nn.block import initialise_linears


def begin_stage(model: Decoder, stage: Stage, shape: StageShape, seed: int) -> None:
    """Put in a stage's blocks, see to the head, and put on its LoRA.

    All that is drawn depends on the seed alone, not on what ran before, and the caller's random
    numbers stay as they were.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.insert_blocks(stage.blocks, stage.at, stage.insertion, copy_of=stage.copy_of)
        if stage.head == "reset":
            initialise_linears(model.lm_head, model.config.initial_std)
        if stage.head == "tied":
            tie_head(model)
        if stage.lora is not None:
            attach_lora(model, stage.lora, shape)
    share_copies(model, stage, shape)


def rebuild(model: Decoder, stage: Stage | None, shape: StageShape) -> None:
    """Bring a fresh model to the form that a checkpoint has, whose tensors are loaded next.

    Args:
        model: as it was before the first stage.
        stage: the one that was stopped in its middle; None if the last one begun is finished.
        shape: of the last stage begun.
    """
    with torch.random.fork_rng():
        model.append_blocks(shape.depth - model.n_layer)
        if stage is not None and stage.lora is not None:
            attach_lora(model, stage.lora, shape)
    if stage is not None:
        share_copies(model, stage, shape)


@torch.no_grad()
def tie_head(model: Decoder) -> None:
    """Make the lifted token table the head's weight, and zero its bias: logits = h · lift(table)ᵀ.

    The bias goes because it belonged to the weights that went; it would otherwise rest as a prior
    over tokens that no training of this head has chosen.
    """
    head = model.lm_head
    ids = torch.arange(model.vocab_size, device=model.device)
    head.weight.copy_(model.embedding(ids))
    if head.bias is not None:
        head.bias.zero_()

"""The boundary before a stage: insert its blocks, set up its head, attach its LoRA."""

from __future__ import annotations

import torch

from fastgrow.growth.active import StageShape
from fastgrow.growth.lora import attach_lora
from fastgrow.growth.sharing import share_copies
from fastgrow.growth.stage import Stage
from fastgrow.nn import Decoder
from fastgrow.nn.block import initialise_linears


def begin_stage(model: Decoder, stage: Stage, shape: StageShape, seed: int) -> None:
    """Change the model as the stage requires: insert blocks, set up the head, attach LoRA.

    All random values depend on the seed only, not on what ran before, and the state of the caller's
    random number generator is restored.

    Args:
        model: the model as the stage before left it; changed in place.
        stage: the stage that begins.
        shape: shape of that stage (`stage_shape`).
        seed: random seed of the stage.
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
    """Give a new model the structure of a checkpoint, whose tensors are loaded next.

    Args:
        model: the model as it was before the first stage.
        stage: the stage that was interrupted; None if the last stage that was started is finished.
        shape: shape of the last stage that was started.
    """
    with torch.random.fork_rng():
        model.append_blocks(shape.depth - model.n_layer)
        if stage is not None and stage.lora is not None:
            attach_lora(model, stage.lora, shape)
    if stage is not None:
        share_copies(model, stage, shape)


@torch.no_grad()
def tie_head(model: Decoder) -> None:
    """Copy the lifted token table into the head's weight: logits = h · lift(table)ᵀ.

    The head's bias is set to zero, because it was trained with the weights that are replaced. It
    would otherwise stay frozen as a prior over tokens that was not trained for this head.
    """
    head = model.lm_head
    ids = torch.arange(model.vocab_size, device=model.device)
    head.weight.copy_(model.embedding(ids))
    if head.bias is not None:
        head.bias.zero_()

"""A partly frozen decoder, and one step of its training."""

from __future__ import annotations

import torch
from tiny_model import TinySubstrate, small_config
from torch import Tensor, nn

from fastgrow.growth import GrowthSchedule, Stage, stage_shape
from fastgrow.growth.freeze import select_active
from fastgrow.nn import Decoder

LEARNING_RATE = 0.5


def growing_model(embedding: str = "frozen", first_active_block: int = 2) -> Decoder:
    """Three blocks; those below `first_active_block` are frozen, the others and the head active."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(small_config(embedding=embedding), TinySubstrate(), generator=generator)
    newest = GrowthSchedule([Stage(model.n_layer - first_active_block)])
    select_active(model, stage_shape(newest, 0, model.config, first_depth=first_active_block))
    return model


def batch(rows: int = 4, length: int = 17) -> tuple[Tensor, Tensor]:
    """Ids and targets, [rows, length] each."""
    text = torch.randint(4, 260, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that are not None, by parameter name."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def descend(model: nn.Module) -> None:
    """One step of gradient descent on the active parameters."""
    active = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(active, lr=LEARNING_RATE).step()

"""What trains in a stage and what stands still, and the proof that it stood still."""

from __future__ import annotations

import hashlib

from torch import nn

from fastgrow.growth.active import StageShape
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import add_tensor


def select_active(model: Decoder, shape: StageShape) -> dict[str, nn.Parameter]:
    """Make what a stage trains require gradients, and freeze the rest.

    Returns:
        The active parameters by their name in the state dict, in the model's order.
    """
    prefixes = [f"blocks.{i}." for i in shape.trained]
    prefixes += ["final_norm."] * shape.final_norm + ["lm_head."] * shape.head
    prefixes += ["embedding."] * shape.table
    active = {}
    for name, parameter in model.named_parameters():
        trains = name.startswith(tuple(prefixes)) or name.endswith((".lora_A", ".lora_B"))
        parameter.requires_grad_(trains)
        # A gradient left from the last stage would be clipped and counted with the new ones.
        parameter.grad = None
        if trains:
            active[name] = parameter
    return active


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of every tensor that does not train."""
    digest = hashlib.sha256()
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *model.named_buffers()]:
        add_tensor(digest, name, tensor)
    return digest.hexdigest()

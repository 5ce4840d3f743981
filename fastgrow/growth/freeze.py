"""Freezing: which parameters of a model are active in a stage, and a hash of all others."""

from __future__ import annotations

import hashlib

from torch import nn

from fastgrow.growth.active import StageShape
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import add_tensor


def select_active(model: Decoder, shape: StageShape) -> dict[str, nn.Parameter]:
    """Set `requires_grad` of a stage's active parameters, and freeze all other parameters.

    Active are the blocks in `shape.trained`, all LoRA matrices, and those of final norm, head and
    token table that are active according to `shape`.

    Returns:
        The active parameters by their names in the state dict, in the model's order.
    """
    prefixes = [f"blocks.{i}." for i in shape.trained]
    prefixes += ["final_norm."] * shape.final_norm + ["lm_head."] * shape.head
    prefixes += ["embedding."] * shape.table
    active = {}
    for name, parameter in model.named_parameters():
        is_active = name.startswith(tuple(prefixes)) or name.endswith((".lora_A", ".lora_B"))
        parameter.requires_grad_(is_active)
        # A gradient of the stage before would be clipped and added to the new ones.
        parameter.grad = None
        if is_active:
            active[name] = parameter
    return active


def frozen_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes of all frozen parameters and buffers."""
    digest = hashlib.sha256()
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *model.named_buffers()]:
        add_tensor(digest, name, tensor)
    return digest.hexdigest()

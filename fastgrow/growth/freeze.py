"""What trains in a stage and what stands still, and the proof that it stood still."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from fastgrow.nn import Decoder


def select_active(model: Decoder, first_active_block: int) -> dict[str, nn.Parameter]:
    """Make blocks from `first_active_block` on, the final norm and the head train; freeze the rest.

    A trainable token table trains while the first block does, and is frozen with it (Growing
    Transformers §4.1: "one variant trains the table with blocks 1-3, then freezes both").

    Returns:
        The active parameters by their name in the state dict, in the model's order.
    """
    prefixes = [f"blocks.{i}." for i in range(first_active_block, model.n_layer)]
    prefixes += ["final_norm.", "lm_head."]
    if first_active_block == 0:
        prefixes.append("embedding.")
    active = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))
        # A gradient left from the last stage would be clipped and counted with the new ones.
        parameter.grad = None
        if parameter.requires_grad:
            active[name] = parameter
    return active


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of every tensor that does not train."""
    digest = hashlib.sha256()
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Telling models apart by what they are made of."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from fastgrow.errors import ConfigError


def model_key(model: Any) -> str:
    """SHA-256 of a module's structure, configurations, weights and substrate.

    Raises:
        ConfigError: the model is no `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"a {type(model).__name__} does not say what it is made of: pass model_key, which "
            "has to change whenever its answers do"
        )
    digest = hashlib.sha256(repr(model).encode())
    for module in model.modules():
        digest.update(repr(getattr(module, "config", None)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    substrate = getattr(model, "substrate", None)
    digest.update(str(getattr(substrate, "fingerprint", None)).encode())
    return digest.hexdigest()

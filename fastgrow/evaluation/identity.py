"""Telling models apart by what they are made of."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow.errors import ConfigError
from fastgrow.nn import FrozenEmbedding


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
        substrate = getattr(module, "substrate", None)
        embedding = getattr(module, "embedding", None)
        if substrate is not None:
            digest.update(substrate.fingerprint.encode())
        elif isinstance(embedding, FrozenEmbedding) and embedding.table is not None:
            _add(digest, "table", embedding.table)
    for name, tensor in model.state_dict().items():
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

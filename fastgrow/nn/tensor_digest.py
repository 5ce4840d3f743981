"""Hash tensors, to identify runs, caches and evaluations."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """The interface of hashlib's hash objects."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def add_tensor(digest: Digest, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, dtype, shape and bytes to a hash."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256()
    add_tensor(digest, "", tensor)
    return digest.hexdigest()

"""What a cached output depends on, as hashes: whatever differs makes another key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import add_tensor
from fastgrow.training import Batches

# JSON values, so that it comes back from a file as it was.
Identity = dict[str, Any]


def trunk_digests(model: Decoder, n: int) -> list[str]:
    """SHA-256 of the embedding and the lowest 0, 1, … n blocks: [n + 1].

    Each goes on from the one before, so a trunk that only grew keeps its first digests.
    """
    config = {k: v for k, v in asdict(model.config).items() if k != "n_layer"}
    embedding = model.embedding
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(f"{embedding!r} {embedding.offset} {embedding.scale}".encode())
    _update(digest, embedding)
    digests = [digest.hexdigest()]
    for block in model.blocks[:n]:
        _update(digest, block)
        digests.append(digest.hexdigest())
    return digests


def _update(digest: Any, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        add_tensor(digest, name, tensor)


def identity(trunk: FrozenTrunk, digest: str, batches: Batches, windows: np.ndarray) -> Identity:
    """All that decides the bits of the rows for `windows`.

    The batch's size and a window's place in it are among it (`Filler`).
    """
    return {
        "n": trunk.n,
        "trunk": digest,
        "windows": hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest(),
        "dtype": trunk.dtype,
        "precision": str(trunk.precision),
        "data": batches.stream.digest,
        "substrate": batches.stream.substrate.fingerprint,
        "seq_len": batches.seq_len,
        "batch_size": batches.batch_size,
        "place": "window % batch_size",
        "n_windows": batches.n_windows,
        "torch": torch.__version__,
        "device": trunk.model.device.type,
    }


def can_advance(old: Identity, wanted: Identity, digests: Sequence[str]) -> bool:
    """Whether rows of `old` are those of a trunk that `wanted`, with these digests, only grew on.

    Other windows do no harm: those that both have are advanced.
    """
    free = ("n", "trunk", "windows")
    if any(old.get(name) != value for name, value in wanted.items() if name not in free):
        return False
    n = old.get("n")
    return isinstance(n, int) and 0 <= n < len(digests) and digests[n] == old.get("trunk")


def key_of(values: Identity) -> str:
    """SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

"""Telling models apart by what they are made of."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, FrozenEmbedding
from fastgrow.nn.tensor_digest import add_tensor


def model_key(model: Any) -> str:
    """SHA-256 of a module's structure, configurations, weights and substrate.

    A module in it that depends on more than its state dict says so by an attribute `beyond_state`,
    names in words.

    Raises:
        ConfigError: the model is no `torch.nn.Module`, or holds what no state dict has, such as a
            bare function or an expert off the device.
    """
    if not isinstance(model, nn.Module):
        raise _silent(f"a {type(model).__name__}")
    digest = hashlib.sha256(repr(model).encode())
    # The last digits of a substrate's table depend on the machine: its fingerprint stands for it.
    of_substrates = {
        id(decoder.embedding)
        for decoder in model.modules()
        if isinstance(decoder, Decoder)
        and decoder.substrate is not None
        and decoder.own_table is None
    }
    for module in model.modules():
        for unsaid in getattr(module, "beyond_state", ()):
            raise _silent(unsaid)
        digest.update(repr(getattr(module, "config", None)).encode())
        substrate = getattr(module, "substrate", None)
        if substrate is not None:
            digest.update(substrate.fingerprint.encode())
        # Any other frozen table is in no state dict.
        if (
            isinstance(module, FrozenEmbedding)
            and module.table is not None
            and id(module) not in of_substrates
        ):
            add_tensor(digest, "table", module.table)
    for name, tensor in model.state_dict().items():
        add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _silent(what: str) -> ConfigError:
    return ConfigError(
        f"{what} does not say what it is made of: pass model_key, which has to change whenever "
        "the model's answers do"
    )

"""`model_key`: a hash that identifies a model."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, FrozenEmbedding
from fastgrow.nn.tensor_digest import add_tensor


def model_key(model: Any) -> str:
    """Return the SHA-256 of a module's structure, configurations, weights and substrate.

    A submodule whose output depends on more than its state dict has an attribute
    `not_in_state_dict`: descriptions of the parts that are missing.

    Raises:
        ConfigError: the model is not a `torch.nn.Module`, or contains parts that are not in a state
            dict, such as a function that is not a module or an offloaded expert.
    """
    if not isinstance(model, nn.Module):
        raise _no_key(f"a {type(model).__name__}")
    digest = hashlib.sha256(repr(model).encode())
    # The last digits of a substrate's table depend on the machine: its fingerprint is used instead.
    of_substrates = {
        id(decoder.embedding)
        for decoder in model.modules()
        if isinstance(decoder, Decoder)
        and decoder.substrate is not None
        and decoder.own_table is None
    }
    for module in model.modules():
        for part in getattr(module, "not_in_state_dict", ()):
            raise _no_key(part)
        digest.update(repr(getattr(module, "config", None)).encode())
        substrate = getattr(module, "substrate", None)
        if substrate is not None:
            digest.update(substrate.fingerprint.encode())
        # Other frozen tables are not in the state dict either.
        if (
            isinstance(module, FrozenEmbedding)
            and module.table is not None
            and id(module) not in of_substrates
        ):
            add_tensor(digest, "table", module.table)
    for name, tensor in model.state_dict().items():
        add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _no_key(what: str) -> ConfigError:
    return ConfigError(
        f"cannot identify {what} by its weights: pass model_key, a name that has to be different "
        "for every model with different answers"
    )

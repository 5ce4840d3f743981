"""The experts of an ensemble, by name, and the checks that new ones have to pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from fastgrow.errors import ConfigError, SubstrateError
from fastgrow.nn import Decoder, FrozenEmbedding, LanguageModel, SubstrateLike

# Attributes that an ensemble uses of its experts.
_REQUIRED = ("vocab_size", "max_seq_len", "substrate", "device", "loss", "new_cache")


class Experts(nn.Module):
    """An ordered mapping from names to models.

    Models that are modules are registered as submodules, so that they are moved, trained and
    counted with this one. Other objects with the methods of a language model are stored separately.

    Not a `ModuleDict`, which rejects names such as "type" and values that are not modules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self._others: dict[str, LanguageModel] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise ConfigError(f"there is no expert {name!r}; the experts are {self.listed()}")
        return self._modules[name] if name in self._modules else self._others[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def not_in_state_dict(self) -> tuple[str, ...]:
        """The models that are not in the state dict; see `evaluation.identity`."""
        others = self._others.items()
        return tuple(f"the expert {name!r}, a {type(model).__name__}," for name, model in others)

    def items(self) -> list[tuple[str, Any]]:
        """Return names and models, in order."""
        return [(name, self[name]) for name in self.names]

    def values(self) -> list[Any]:
        """Return the models, in order."""
        return [self[name] for name in self.names]

    def listed(self) -> str:
        """Return the names as text for a message."""
        return ", ".join(repr(name) for name in self.names) or "none"

    def insert(self, name: str, model: LanguageModel) -> None:
        """Append a model that has been checked."""
        self.names = (*self.names, name)
        if isinstance(model, nn.Module):
            self._modules[name] = model
        else:
            self._others[name] = model

    def pop(self, name: str) -> Any:
        """Remove and return a model."""
        model = self[name]
        self.names = tuple(other for other in self.names if other != name)
        self._modules.pop(name, None)
        self._others.pop(name, None)
        return model

    def replace(self, name: str, model: LanguageModel) -> None:
        """Replace a model by another one of the same name."""
        order = self.names
        self.pop(name)
        self.insert(name, model)
        self.names = order

    def rename(self, old: str, new: str) -> None:
        """Rename a model; the order stays the same."""
        order = tuple(new if name == old else name for name in self.names)
        self.insert(new, self.pop(old))
        self.names = order


def check_name(name: object, taken: Experts) -> str:
    """Return the name if it can be a folder and a part of a state dict's keys.

    Raises:
        ConfigError: it cannot, or another expert has this name.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,63}", name):
        raise ConfigError(
            f"expert name {name!r}: expected up to 64 letters, digits, '_' and '-', "
            "not beginning with '-'"
        )
    if name in taken:
        raise ConfigError(f"there is an expert {name!r} already; remove it or choose another name")
    return name


def check_model(name: str, model: Any, experts: Experts) -> None:
    """Check that a model can be combined with the given experts.

    Raises:
        ConfigError: it is not a language model, or has another vocabulary size or device.
        SubstrateError: its substrate differs; the message names the difference.
    """
    missing = [attribute for attribute in _REQUIRED if not hasattr(model, attribute)]
    if missing or not callable(model):
        what = f"attribute {missing[0]!r}" if missing else "__call__ method"
        raise ConfigError(
            f"expert {name!r} is a {type(model).__name__} and not a language model: "
            f"it has no {what}"
        )
    for other_name, other in experts.items():
        if model.vocab_size != other.vocab_size:
            raise ConfigError(
                f"expert {name!r} has a vocabulary of {model.vocab_size:,} tokens, "
                f"expert {other_name!r} one of {other.vocab_size:,}; experts need one substrate"
            )
        if model.device != other.device:
            raise ConfigError(
                f"expert {name!r} is on {model.device}, "
                f"expert {other_name!r} on {other.device}; move one of them"
            )
        check_substrate(
            f"expert {name!r}", model.substrate, f"expert {other_name!r}", other.substrate
        )


def check_substrate(name: str, substrate: Any | None, other_name: str, other: Any | None) -> None:
    """Check that two substrates are equal; if either is None, nothing is compared.

    Raises:
        SubstrateError: they differ; the message names the difference.
    """
    if substrate is None or other is None or substrate.fingerprint == other.fingerprint:
        return
    if type(other) is not type(substrate):
        difference = f"a {type(other).__name__} against a {type(substrate).__name__}"
    elif hasattr(other, "difference"):
        difference = other.difference(substrate)
    else:
        difference = f"fingerprints {other.fingerprint[:16]}… against {substrate.fingerprint[:16]}…"
    raise SubstrateError(
        f"{name} and {other_name} use different substrates ({other_name} against {name}): "
        f"{difference}"
    )


def share_substrate(model: object, experts: Experts, substrate: SubstrateLike | None) -> None:
    """Make a new expert share the token tables and the substrate of the others if equal."""
    if not isinstance(model, nn.Module):
        return
    held = [module for module in experts.modules() if isinstance(module, FrozenEmbedding)]
    for module in model.modules():
        if isinstance(module, FrozenEmbedding):
            # `any` stops at the first equal table.
            any(module.share(embedding) for embedding in held)
        if isinstance(module, Decoder) and module.substrate is not None and substrate is not None:
            module.substrate = substrate

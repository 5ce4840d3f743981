"""Compare states bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fastgrow.nn.tensor_digest import tensor_digest


def digests(model: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every parameter and buffer of a model, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor_digest(tensor) for name, tensor in tensors}


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the paths at which two nested states of dicts, tensors and plain values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = [*a, *(key for key in b if key not in a)]
        return [
            place
            for key in names
            for place in differing(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if tensor_digest(a) == tensor_digest(b) else [where]
    return [] if type(a) is type(b) and a == b else [where]


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference of floating-point tensors in two states.

    The states must have equal names and shapes.
    """
    return max(
        (
            float((x.double() - b[name].to(x.device).double()).abs().max())
            for name, x in a.items()
            if x.is_floating_point() and x.numel()
        ),
        default=0.0,
    )


def shorten(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names for a message, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

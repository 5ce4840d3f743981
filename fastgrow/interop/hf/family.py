"""Description of a model family: which classes are replaced, and by which classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


def no_obstacle(module: nn.Module) -> str:
    """Return "": every module of the class can be replaced."""
    return ""


@dataclass(frozen=True)
class Replacement:
    """A class of transformers and the subclass that replaces it.

    Args:
        part: role of such a module in a model.
        original: the class of transformers.
        fast: the subclass, which adds no attributes.
        operation: name of the operation that its forward calls.
        obstacle: function that returns why a module cannot be replaced; "" if it can.
    """

    part: str
    original: type[nn.Module]
    fast: type[nn.Module]
    operation: str
    obstacle: Callable[[nn.Module], str] = no_obstacle

    def __post_init__(self) -> None:
        _BY_FAST_CLASS[self.fast] = self

    def obstacle_in(self, module: nn.Module) -> str:
        """Return why this module cannot be replaced; "" if it can."""
        if type(module) is not self.original:
            return f"a subclass of {self.original.__name__}, whose forward may differ"
        if "forward" in vars(module):
            return "its forward has been replaced already"
        return self.obstacle(module)


@dataclass(frozen=True)
class Family:
    """Models with the same layer classes.

    Args:
        attention: class of the attention module, which looks up its function by name.
        attention_dropout: name of the dropout probability in the configuration.
        replacements: the classes to replace.
        not_replaced: part, class and reason for classes that are not replaced.
        attention_obstacle: function that returns why a model's attention cannot be replaced; "" if
            it can.
    """

    attention: type[nn.Module]
    attention_dropout: str
    replacements: tuple[Replacement, ...]
    not_replaced: tuple[tuple[str, type[nn.Module], str], ...] = ()
    attention_obstacle: Callable[[nn.Module], str] = no_obstacle


_BY_FAST_CLASS: dict[type[nn.Module], Replacement] = {}


def original_of(module: nn.Module) -> Replacement | None:
    """Return the replacement of a patched module; None if the module is not patched."""
    return _BY_FAST_CLASS.get(type(module))

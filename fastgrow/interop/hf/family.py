"""What a family of models is made of, and which of our classes stand in for theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


def nothing_in_the_way(module: nn.Module) -> str:
    """The obstacle of a replacement that takes every module of its class."""
    return ""


@dataclass(frozen=True)
class Replacement:
    """Our subclass for a class of theirs.

    Args:
        part: what such a module is in a model.
        original: their class.
        fast: our subclass of it, which adds no attributes.
        operation: what its forward calls.
        obstacle: why a module of that class cannot be swapped; empty where it can.
    """

    part: str
    original: type[nn.Module]
    fast: type[nn.Module]
    operation: str
    obstacle: Callable[[nn.Module], str] = nothing_in_the_way

    def __post_init__(self) -> None:
        _BY_FAST_CLASS[self.fast] = self

    def obstacle_in(self, module: nn.Module) -> str:
        """Why this module cannot be swapped; empty where it can."""
        if type(module) is not self.original:
            return f"a subclass of {self.original.__name__}, whose forward may be another"
        if "forward" in vars(module):
            return "its forward has been replaced already"
        return self.obstacle(module)


@dataclass(frozen=True)
class Family:
    """Models that share their layers.

    Args:
        attention: their attention module, which looks its function up by name.
        attention_dropout: the configuration's name for its dropout.
        replacements: our classes for theirs.
        left_alone: part, class and reason for what we do not swap.
        attention_obstacle: why a model's attention cannot be ours; empty where it can.
    """

    attention: type[nn.Module]
    attention_dropout: str
    replacements: tuple[Replacement, ...]
    left_alone: tuple[tuple[str, type[nn.Module], str], ...] = ()
    attention_obstacle: Callable[[nn.Module], str] = nothing_in_the_way


_BY_FAST_CLASS: dict[type[nn.Module], Replacement] = {}


def original_of(module: nn.Module) -> Replacement | None:
    """The replacement that a patched module went through; None where it is not patched."""
    return _BY_FAST_CLASS.get(type(module))

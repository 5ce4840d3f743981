"""Errors a user can meet.

Each message says what was wrong, where, and what was expected. The command line prints the message
alone, so it has to stand without a traceback. Every class also derives from the built-in exception
that a caller who does not know fastgrow would catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class FastgrowError(Exception):
    """Base of every error that fastgrow raises on purpose."""


class ConfigError(FastgrowError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class ArgumentError(FastgrowError, ValueError):
    """A tensor has a shape, dtype, device or content that an operation or module cannot take."""


class DataError(FastgrowError, ValueError):
    """A text, corpus or token stream cannot be used as given."""


class SubstrateError(FastgrowError, ValueError):
    """A vocabulary, glyph table or substrate is inconsistent or differs from the one expected."""


class CheckpointError(FastgrowError, RuntimeError):
    """A file on disk is missing, damaged or does not fit the object it is loaded into."""


class DivergenceError(FastgrowError, ArithmeticError):
    """A loss or gradient became NaN or infinite."""


class Interrupted(FastgrowError):
    """A run was stopped by the user after its state had been saved."""


def argument_error(where: str, argument: str, expected: str, got: object) -> ArgumentError:
    """The error for an argument that an operation or module cannot take; the caller raises it."""
    return ArgumentError(f"{where}: {argument} must be {expected}, got {got}")


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for error messages."""
    shape = ", ".join(str(n) for n in tensor.shape)
    return f"[{shape}] {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"

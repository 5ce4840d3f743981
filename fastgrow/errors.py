"""Exceptions that fastgrow raises.

Each message states what was wrong, where, and what was expected. The command line prints only the
message, so it must be understandable without a traceback. Each class also derives from the built-in
exception that describes the same kind of error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class FastgrowError(Exception):
    """Base class of all errors that fastgrow raises."""


class ConfigError(FastgrowError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class ArgumentError(FastgrowError, ValueError):
    """An operation or module does not accept a tensor's shape, dtype, device or content."""


class DataError(FastgrowError, ValueError):
    """A text, corpus or token stream is missing, malformed or unsuitable."""


class SubstrateError(FastgrowError, ValueError):
    """A vocabulary, glyph table or substrate is inconsistent or differs from the one expected."""


class CheckpointError(FastgrowError, RuntimeError):
    """A file on disk is missing, damaged, or does not match the object it is loaded into."""


class DivergenceError(FastgrowError, ArithmeticError):
    """A loss or gradient became NaN or infinite."""


class Interrupted(FastgrowError):
    """The user stopped a run. Its state was saved if the run writes checkpoints."""


def argument_error(where: str, argument: str, expected: str, got: object) -> ArgumentError:
    """Return the error for an argument that an operation or module does not accept."""
    return ArgumentError(f"{where}: {argument} must be {expected}, got {got}")


def describe(tensor: Tensor) -> str:
    """Return a tensor's shape, dtype and device as text for error messages."""
    shape = ", ".join(str(n) for n in tensor.shape)
    return f"[{shape}] {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"

"""Whether optional packages are installed."""

from __future__ import annotations

import importlib.util


def is_there(module: str) -> bool:
    """Whether a module is installed. Only its parent packages are imported."""
    # Finding a module is much faster than importing it. A finder may raise for a missing module.
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

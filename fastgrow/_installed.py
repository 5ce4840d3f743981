"""Which other packages are installed."""

from __future__ import annotations

import importlib.util


def is_there(module: str) -> bool:
    """Is a module installed? Its parents are imported, as finding it takes."""
    # Finding is cheap where importing takes a while; a finder may also refuse by raising.
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

"""Liger's operations, as libraries where the package is installed."""

from __future__ import annotations

import importlib
import importlib.util

from benchmarks.case import Case, Run


def liger(case: Case, name: str, run: Run) -> dict[str, Run]:
    """`{name: run}` on a GPU with liger-kernel installed, and nothing elsewhere."""
    installed = importlib.util.find_spec("liger_kernel") is not None
    return {name: run} if case.device == "cuda" and installed else {}


def function(module: str, name: str) -> type:
    """An autograd function of Liger's, imported on first use."""
    found: type = getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)
    return found

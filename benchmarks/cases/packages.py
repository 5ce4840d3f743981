"""Third-party packages as alternatives: searched when a case is made, imported on first use.

On a GPU, each has its row, even if it is not installed. On a CPU they are not measured, as they
have no CPU kernels.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.case import Absent, Case, Library
from fastgrow._installed import is_there

LIGER, QUACK = "liger_kernel", "quack"


def package(case: Case, name: str, module: str, way: Library) -> dict[str, Library]:
    """Return the entry `name` of a GPU case: `way` if the module is installed, else `Absent`."""
    if case.device != "cuda":
        return {}
    return {name: way if is_there(module) else Absent("not installed")}


@functools.cache
def function(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a package, which is imported once."""
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def liger(module: str, name: str) -> Callable[..., Any]:
    """Return `apply` of one of Liger's autograd functions."""
    apply: Callable[..., Any] = function(f"liger_kernel.ops.{module}", name).apply  # type: ignore[attr-defined]
    return apply

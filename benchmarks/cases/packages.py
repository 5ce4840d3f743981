"""Other people's packages as libraries: looked for when a case is made, imported on first use.

On a GPU each has its cell, also where it is not installed. On a CPU they are no rivals: they have
no kernels there.
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
    """The cell `name` of a GPU case: `way`, where the module is installed."""
    if case.device != "cuda":
        return {}
    return {name: way if is_there(module) else Absent("not installed")}


@functools.cache
def function(module: str, name: str) -> Callable[..., Any]:
    """A function of a package's, imported once."""
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def liger(module: str, name: str) -> Callable[..., Any]:
    """The `apply` of an autograd function of Liger's."""
    apply: Callable[..., Any] = function(f"liger_kernel.ops.{module}", name).apply  # type: ignore[attr-defined]
    return apply

"""A kernel's source as a short text, by which what was measured of it is known again.

It is of the kernel's function, of the `@triton.jit` functions that it calls and of the global
constants that it reads. Comments, docstrings, layout, line numbers and the files that all of this
lies in do not count, so that moving or renaming a file keeps what was measured; neither does the
version of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime.jit import JITCallable

from fastgrow.kernels.source import text_of


@functools.cache
def digest(kernel: JITCallable) -> str:
    """16 characters, the same wherever the kernel's source is the same."""
    function = kernel.parse().body[0]
    if ast.get_docstring(function, clean=False) is not None:
        del function.body[0]
    # What the decorator was told about the compilation.
    params = getattr(kernel, "params", ())
    parts = [
        text_of(function),
        str([p.name for p in params if p.do_not_specialize]),
        str([p.name for p in params if p.do_not_specialize_on_alignment]),
        str(bool(getattr(kernel, "noinline", False))),
    ]
    scope = kernel.get_capture_scope()
    for name, value in sorted(set(_used(function, scope)), key=lambda used: used[0]):
        if isinstance(value, JITCallable):
            # A function that calls itself is in its own tree.
            parts.append(f"{name}: {'itself' if value is kernel else digest(value)}")
        else:
            parts.append(f"{name}: {value!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _used(function: ast.AST, scope: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Functions and constants from outside that a function names."""
    nodes = list(ast.walk(function))
    local = {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    local |= {x.arg for x in nodes if isinstance(x, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            value = _value(node, scope, local)
            if isinstance(value, tl.constexpr):
                value = value.value
            if isinstance(value, JITCallable | bool | int | float | str | tl.dtype):
                yield ast.unparse(node), value


def _value(node: ast.expr, scope: dict[str, Any], local: set[str]) -> object:
    """What a name, or a name in a module of ours, stands for; None for what is Triton's."""
    if isinstance(node, ast.Name):
        return None if node.id in local else scope.get(node.id)
    if isinstance(node, ast.Attribute):
        module = _value(node.value, scope, local)
        if isinstance(module, ModuleType) and not module.__name__.startswith("triton."):
            return getattr(module, node.attr, None)
    return None

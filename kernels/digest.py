"""Digest of a kernel's source, which identifies the kernel that a measurement belongs to.

It covers the kernel's function, the `@triton.jit` functions that it calls and the global constants
that it reads. Comments, docstrings, layout, line numbers, file names and the version of Python do
not count, so measurements remain valid when a file is moved or renamed.
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
    """Return 16 characters that are the same for equal sources."""
    function = kernel.parse().body[0]
    if ast.get_docstring(function, clean=False) is not None:
        del function.body[0]
    # The decorator's arguments that affect the compilation.
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
            # The source of a function that calls itself is already included.
            parts.append(f"{name}: {'itself' if value is kernel else digest(value)}")
        else:
            parts.append(f"{name}: {value!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _used(function: ast.AST, scope: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the names and values of outer functions and constants that a function uses."""
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
    """Return the value of a name or of an attribute of a module; None for Triton's modules."""
    if isinstance(node, ast.Name):
        return None if node.id in local else scope.get(node.id)
    if isinstance(node, ast.Attribute):
        module = _value(node.value, scope, local)
        if isinstance(module, ModuleType) and not module.__name__.startswith("triton."):
            return getattr(module, node.attr, None)
    return None

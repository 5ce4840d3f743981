"""Find which launcher can launch which kernel, from the sources.

A kernel is a `@triton.jit` function that no other one calls; a launcher is a function of a module
of kernels that the operations call. Both have names such as `attention.forward`.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from fastgrow.kernels import common

KERNELS = Path(common.__file__).parent
OPERATIONS = Path(__file__).parents[2] / "fastgrow" / "ops"
PACKAGE = "fastgrow.kernels"


def kernels() -> set[str]:
    """Return all kernels."""
    return _jitted() - {used for name in _jitted() for used in _used(name)}


def launches() -> set[tuple[str, str]]:
    """Return every pair of a launcher and a kernel that it can launch."""
    files = [_parsed(file) for file in OPERATIONS.rglob("*.py")]
    called = {name for tree in files for name in _names_in(tree, "") | _by_decorator(tree)}
    launchers = called & _functions().keys() - _jitted()
    return {(name, kernel) for name in launchers for kernel in _reached(name) & kernels()}


def _by_decorator(tree: ast.Module) -> set[str]:
    """Return the launchers named in `launched_by`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func) == "launched_by"}


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _functions() -> dict[str, ast.FunctionDef]:
    """Return all top-level functions of a module, by `module.name`."""
    return {
        f"{file.stem}.{node.name}": node
        for file in KERNELS.glob("*.py")
        for node in _parsed(file).body
        if isinstance(node, ast.FunctionDef)
    }


@functools.cache
def _jitted() -> frozenset[str]:
    return frozenset(
        name
        for name, node in _functions().items()
        if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    )


@functools.cache
def _used(name: str) -> frozenset[str]:
    """Return the functions of the kernels' modules that a function uses."""
    module, function = name.partition(".")[0], _functions()[name]
    # An argument or a variable may have a function's name.
    nodes = [*ast.walk(function)]
    local = {x.arg for x in nodes if isinstance(x, ast.arg)}
    local |= {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    imports = _parsed(KERNELS / f"{module}.py")
    hidden = {f"{module}.{x}" for x in local}
    return frozenset(_names_in(function, module, imports) - hidden - {name})


def _reached(name: str) -> set[str]:
    found, ahead = set(), [name]
    while ahead:
        new = _used(ahead.pop()) - found
        found |= new
        ahead += new
    return found


def _names_in(tree: ast.AST, module: str, imports: ast.AST | None = None) -> set[str]:
    """Return `module.name` of every function of kernels that the tree uses, from its imports."""
    functions, modules = {}, {}
    for node in ast.walk(imports or tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, source = node.module.rpartition(".")
            for alias in node.names:
                if node.module == PACKAGE:
                    modules[alias.asname or alias.name] = alias.name
                elif package == PACKAGE:
                    functions[alias.asname or alias.name] = f"{source}.{alias.name}"
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(functions.get(node.id, f"{module}.{node.id}"))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            source = modules.get(node.value.id)
            if source is not None:
                found.add(f"{source}.{node.attr}")
    return {_origin(name) for name in found if _origin(name) in _functions()}


def _origin(name: str) -> str:
    """Return where a function that a module re-exports is defined, such as `attention.decode`."""
    module, _, function = name.partition(".")
    file = KERNELS / f"{module}.py"
    if name in _functions() or not file.exists():
        return name
    for node in _parsed(file).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            for alias in node.names:
                if (alias.asname or alias.name) == function:
                    return f"{(node.module or '').rpartition('.')[2]}.{alias.name}"
    return name

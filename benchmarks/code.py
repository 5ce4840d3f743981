"""A digest of an operation's code, which decides whether a recorded result is still valid.

It covers every module of fastgrow.ops and fastgrow.kernels that the operation's case imports
directly or indirectly, the functions of the case itself, and the extension's CUDA sources. It
ignores comments, docstrings, imports, the order of definitions and the names of files: moving a
function or renaming its file does not change the digest, changing a line of it does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import ROOT
from benchmarks.case import Family
from fastgrow.kernels.source import text_of

# Folders of the packages in a working copy.
FOLDERS = {
    "fastgrow.kernels": ROOT / "kernels",
    "fastgrow": ROOT / "fastgrow",
    "benchmarks": ROOT / "benchmarks",
}
FOLLOWED = ("fastgrow.ops", "fastgrow.kernels", "fastgrow._native", "benchmarks.cases")
CUDA_SOURCES = ROOT / "csrc" / "cuda"


def digest_of(family: Family) -> str:
    """Return the digest of the code that a family's rows are measured with."""
    call = family.call
    while isinstance(call, functools.partial):
        call = call.func
    return _digest(call.__module__)


def digest_of_everything() -> str:
    """Return the digest for results that are about no single operation, such as tests."""
    return _digest("benchmarks.cases")


@functools.cache
def _digest(root: str) -> str:
    statements: set[str] = set()
    for module in closure(root):
        path = _file(module)
        assert path is not None
        only_functions = module.startswith("benchmarks.")
        statements |= set(normalised(path.read_text(encoding="utf-8"), only_functions))
    for path in sorted(CUDA_SOURCES.glob("*")):
        statements.add(without_comments(path.read_text(encoding="utf-8")))
    return hashlib.sha256("\n".join(sorted(statements)).encode()).hexdigest()[:16]


def closure(root: str) -> set[str]:
    """Return the module and all modules of FOLLOWED that it imports or launches by name.

    Imports inside functions count, too.
    """
    found: set[str] = set()
    waiting = [root] if _file(root) is not None else []
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        waiting += _imports(module)
    return found


@functools.cache
def _imports(module: str) -> list[str]:
    path = _file(module)
    assert path is not None
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [_home(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "launched_by":
            # A launcher such as "norm.forward", which is imported when it is first called.
            launcher: str = ast.literal_eval(node.args[0])
            names.append(f"fastgrow.kernels.{launcher.rpartition('.')[0]}")
    return [n for n in names if n.startswith(FOLLOWED) and _file(n) is not None and n != module]


def _home(module: str, name: str) -> str:
    """Return the module that defines the `name` in `from module import name`.

    A name that a package's __init__.py re-exports is followed to the defining module, because the
    package itself would import all of its modules.
    """
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    path = _file(module)
    if path is None or path.name != "__init__.py":
        return module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(node.module, alias.name)
    return module


@functools.cache
def _file(module: str) -> Path | None:
    """Return the file of a module of this working copy; None for any other module."""
    for package, folder in FOLDERS.items():
        if module == package or module.startswith(f"{package}."):
            path = folder.joinpath(*module.removeprefix(package).split(".")[1:])
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if candidate.is_file():
                    return candidate
    return None


def normalised(source: str, only_functions: bool = False) -> Iterator[str]:
    """Yield a text for each top-level statement, without imports, docstrings and comments."""
    for node in _without_words(ast.parse(source)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) or not only_functions:
            yield text_of(node)


class _Wordless(ast.NodeTransformer):
    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove docstrings and other bare strings."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)


def _without_words(tree: ast.Module) -> ast.Module:
    stripped: ast.Module = _Wordless().visit(tree)
    return stripped


def without_comments(source: str) -> str:
    """Return C++ code without comments, includes and whitespace differences."""
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL)
    lines: Iterable[str] = (re.sub(r"//.*", "", line) for line in source.splitlines())
    return " ".join(" ".join(line for line in lines if not line.startswith("#include")).split())

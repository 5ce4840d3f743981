"""Imports from and to `kernels/`, which import-linter cannot check, and imports from `ops`."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import fastgrow
from fastgrow import ops

PACKAGE = Path(fastgrow.__file__).parent
KERNELS = PACKAGE.parent / "kernels"


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_kernels_stand_on_torch_and_triton_alone() -> None:
    files = list(KERNELS.rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            root = name.split(".")[0]
            allowed = root in sys.stdlib_module_names or root in ("torch", "triton")
            assert allowed or name.startswith("fastgrow.kernels."), f"{path} imports {name}"


def test_only_operations_import_kernels() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("fastgrow.kernels") for name in imported(path))
    }
    assert users <= {"ops"}


FOLDERS = {module.name for module in pkgutil.iter_modules(ops.__path__)}
# One replaces the device that the operations query, one times a step of an operation, one writes
# the entries that they look up, and one shows how they divide a GPU's work.
INSIDERS = (
    "benchmarks/stubbed.py",
    "benchmarks/cases/ensemble_loss.py",
    "benchmarks/native_times.py",
    "benchmarks/plans.py",
)


def imported_of_ops(path: Path) -> set[tuple[str, str]]:
    """(module, name) of what a file imports from operations, wherever in it."""
    nodes = [
        n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)
    ]
    found = {(node.module or "", alias.name) for node in nodes for alias in node.names}
    return {(module, name) for module, name in found if f"{module}.".startswith("fastgrow.ops.")}


def test_others_import_operations_by_their_public_names() -> None:
    """`fastgrow.ops` or one of its folders, and what these export."""
    root = PACKAGE.parent
    files = [p for p in PACKAGE.rglob("*.py") if PACKAGE / "ops" not in p.parents]
    files += [*(root / "benchmarks").rglob("*.py"), *(root / "examples").rglob("*.py")]
    assert files
    for path in files:
        where = path.relative_to(root).as_posix()
        assert not any(name.startswith("fastgrow.ops.") for name in plainly_imported(path)), where
        for module, name in imported_of_ops(path):
            folder = module.removeprefix("fastgrow.ops").lstrip(".")
            is_public = name in getattr(importlib.import_module(module), "__all__", ())
            assert is_public or where in INSIDERS, f"{where}: {module} {name}"
            assert "." not in folder or where in INSIDERS, f"{where}: {module} {name}"


def plainly_imported(path: Path) -> set[str]:
    """Modules that a file names in an `import` without `from`."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_no_public_name_hides_a_folder(name: str) -> None:
    """`import fastgrow.ops.<folder> as m` gives the folder and not a function of its name."""
    assert getattr(ops, name, None) in (None, sys.modules.get(f"fastgrow.ops.{name}"))
    assert name not in ops.__all__

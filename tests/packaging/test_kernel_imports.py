"""The arrows around `kernels/`, which import-linter does not see: it has no __init__.py."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import fastgrow

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

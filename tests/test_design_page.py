"""docs/design.md lists every package and exactly what it imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fastgrow

PACKAGE = Path(fastgrow.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def table(header: str) -> dict[str, str]:
    """First cell to last cell of the rows of the table with this header."""
    lines = PAGE.split(f"\n{header}\n")[1].splitlines()[1:]
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return {row[0].strip(): row[-1].strip() for row in rows}


def packages() -> dict[str, list[Path]]:
    """The public parts of the package, by name, with their files."""
    parts = {path.name: sorted(path.rglob("*.py")) for path in PACKAGE.iterdir() if path.is_dir()}
    parts["info"] = [PACKAGE / "info.py"]
    parts["kernels"] = sorted((PACKAGE.parent / "kernels").rglob("*.py"))
    return {name: files for name, files in parts.items() if files and not name.startswith("_")}


def imports(files: list[Path], names: set[str]) -> set[str]:
    """The packages that files import at run time, wherever in them."""
    found = set()
    for file in files:
        for node in at_run_time(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                full = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                full = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found |= {name.split(".")[1] for name in full if name.startswith("fastgrow.")}
    return found & names


def at_run_time(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    nodes = [tree]
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            nodes += at_run_time(child)
    return nodes


def test_the_packages_are_those_that_exist_and_import_what_the_page_lists() -> None:
    listed = {
        name.strip("`"): set(re.findall(r"`(\w+)`", cell))
        for name, cell in table("| package | purpose | imports |").items()
    }
    actual = packages()
    assert set(listed) == set(actual)
    for name, files in actual.items():
        assert imports(files, set(actual) - {name}) == listed[name], name


def test_the_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:\w+/)*[\w.]+\.py)`", PAGE))
    assert len(named) > 10
    tree = [str(path) for part in ("fastgrow", "tests") for path in (ROOT / part).rglob("*.py")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in tree)]


def test_the_commands_that_the_page_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert {name.split()[1].strip("`") for name in table("| command | what runs |")} <= targets

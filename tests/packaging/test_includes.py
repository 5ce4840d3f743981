"""csrc/ includes itself what it uses of torch's headers.

Which of them include each other changes from one torch to another: a macro that comes by way of
another header is not there under the oldest torch that is supported. `make oldest` compiles with
that one; a test of the ordinary suite cannot, whose wheel is hundreds of megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT

CSRC = ROOT / "csrc"
HEADERS = Path(torch.__file__).parent / "include"
MACRO = re.compile(r"\b(?:STD|STABLE|TORCH)_[A-Z][A-Z_]*\b")
SOURCES = sorted(
    path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".cu", ".h", ".cuh", ".inl")
)


def code_of(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


def included(path: Path) -> Iterator[str]:
    """Torch's headers that a file names, or a file of csrc/ that it includes does."""
    for name in re.findall(r'^#include [<"](.*)[>"]', path.read_text(encoding="utf-8"), re.M):
        own = path.parent / name
        if own.is_file():
            yield from included(own)
        elif name.startswith("torch/"):
            yield name


def definitions() -> dict[str, set[str]]:
    """The headers that define each macro."""
    found: dict[str, set[str]] = {}
    for folder in ("torch/csrc/stable", "torch/csrc/inductor/aoti_torch", "torch/headeronly"):
        for path in (HEADERS / folder).rglob("*.h"):
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"^\s*#\s*define\s+(\w+)", text, re.M):
                found.setdefault(name, set()).add(path.relative_to(HEADERS).as_posix())
    return found


@pytest.fixture(scope="module")
def defined() -> dict[str, set[str]]:
    return definitions()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_macros_are_included_where_they_are_used(path: Path, defined: dict[str, set[str]]) -> None:
    headers = set(included(path))
    if path.suffix == ".inl":
        # It is a part of the files that include it.
        users = [p for p in SOURCES if f'"{path.name}"' in p.read_text(encoding="utf-8")]
        headers |= {header for user in users for header in included(user)}
    own = set(re.findall(r"#define (\w+)", code_of(path)))
    for macro in set(MACRO.findall(code_of(path))) - own:
        assert defined[macro] & headers, f"{macro} comes from {defined[macro]}: include it"

"""The documentation page lists the support of `native` as its implementations report it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgrow import _native
from fastgrow.ops import native_support

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def table() -> str:
    rows = [["`native` of", "on a CPU", "on a GPU"], ["---"] * 3]
    for names, *cells in native_support():
        rows.append([", ".join(f"`{name}`" for name in names), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_lists_what_native_supports() -> None:
    expected = table()
    assert "`mean_argmax`" in expected
    assert expected in PAGE.read_text(encoding="utf-8"), f"it is:\n{expected}"


@pytest.mark.parametrize("loaded", [False, True])
def test_it_does_not_matter_what_is_built(monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    expected = native_support()
    for name in ("CPU", "CUDA"):
        monkeypatch.setattr(_native, name, _native.Extension("_C", loaded, "not there"))
    assert native_support() == expected

"""Texts and studies for the tests in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import MakeStudy, settings, words

from fastgrow.study.plan import Study


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study's texts."""
    path = tmp_path_factory.mktemp("texts")
    (path / "latin.txt").write_text(words("abcdefgh", 1), encoding="utf-8")
    (path / "greek.txt").write_text(words("αβγδεζηθ", 2), encoding="utf-8")
    return path


@pytest.fixture
def make_study(folder: Path, tmp_path: Path) -> MakeStudy:
    """Makes a study of `small_study.TREE` with some of its entries replaced."""

    def make(**entries: Any) -> Study:
        return Study(settings(**entries), [folder], tmp_path / "study")

    return make

"""A substrate and a text for growth runs of a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from growing import make_data, make_substrate

from fastgrow.substrate import Substrate
from fastgrow.training import TextData


@pytest.fixture(scope="session")
def substrate() -> Substrate:
    return make_substrate()


@pytest.fixture
def data(substrate: Substrate, tmp_path: Path) -> TextData:
    return make_data(substrate, tmp_path / "tokens")

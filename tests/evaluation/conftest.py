"""The folder of the tasks' files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def evaluation_data(development_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks' JSON-lines files, unpacked from the development data."""
    folder = development_data / "eval"
    if (folder / "tasks.tar.xz").exists():
        unpacked = tmp_path_factory.mktemp("eval")
        with tarfile.open(folder / "tasks.tar.xz") as archive:
            archive.extractall(unpacked, filter="data")
        folder = unpacked
    return folder

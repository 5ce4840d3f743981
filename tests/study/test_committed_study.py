"""A cell of the committed study comes again from its seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "study" / "composition" / "results.json"
CELL = "en-fortunes"


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_cell_comes_again_to_the_printed_digits(development_data: Path, tmp_path: Path) -> None:
    archive = development_data / "corpora" / "debian-docs.tar.xz"
    for needed in (RECORD, archive):
        if not needed.is_file():
            pytest.skip(f"{needed} is missing")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "texts", filter="data")
    out = tmp_path / "study"
    command = ["study", "composition", "--only", CELL, "--seeds", "1", "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "fastgrow", *command, "--data", str(tmp_path / "texts")],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    committed, again = (
        json.loads(path.read_text(encoding="utf-8"))["trainings"][CELL]["1"]
        for path in (RECORD, out / "results.json")
    )
    assert again["key"] == committed["key"]
    for mine, theirs in zip(again["stages"], committed["stages"], strict=True):
        assert {text: f"{bits:.2f}" for text, bits in mine["bits"].items()} == {
            text: f"{bits:.2f}" for text, bits in theirs["bits"].items()
        }

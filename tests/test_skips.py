"""The end of a test run lists what was skipped and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from skips import skipped_in

TESTS = """
import pytest

@pytest.mark.parametrize("i", range(3))
def test_a(i):
    pytest.skip("there is no CUDA device")

def test_b():
    pytest.importorskip("a_module_that_is_not_here", reason="it is not installed")

def test_c(record_property):
    record_property("skipped, by reason", {"it is not installed": 4, "needs a GPU": 2})
"""


def test_each_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from skips import pytest_terminal_summary\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert skipped_in(done.stdout) == {
        "it is not installed": 5,
        "there is no CUDA device": 3,
        "needs a GPU": 2,
    }


def test_nothing_is_said_where_nothing_was_skipped() -> None:
    assert skipped_in("..... [100%]\n5 passed in 3.20s\n") == {}

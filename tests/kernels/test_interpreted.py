"""Runs the tests of `interpreted/` under Triton's interpreter.

A process either interprets kernels or compiles them, which is decided when it imports Triton. The
quick tests share one process, because starting it takes as long as the tests of most files.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from skips import SKIPPED, skipped_in

INTERPRETED = Path(__file__).parent / "interpreted"
FILES = sorted(file.name for file in INTERPRETED.glob("test_*.py"))
NO_TESTS = 5  # pytest's status where none has the marks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpret(path: Path, marks: str, record_property: Callable[[str, object], None]) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marks, str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, NO_TESTS), done.stdout[-6000:] + done.stderr[-2000:]
    record_property(SKIPPED, skipped_in(done.stdout))
    return done.returncode


def test_quick(record_property: Callable[[str, object], None]) -> None:
    # test_smoke.py runs the others.
    assert interpret(INTERPRETED, "not slow and not gpu_smoke", record_property) == 0


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_full(file: str, record_property: Callable[[str, object], None]) -> None:
    # Some files have quick tests alone.
    interpret(INTERPRETED / file, "slow", record_property)

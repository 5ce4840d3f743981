"""Runs each file of `interpreted/` under Triton's interpreter.

A process either interprets kernels or compiles them, and decides when it imports Triton.
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

HERE = Path(__file__).parent
FILES = sorted(file.name for file in (HERE / "interpreted").glob("test_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpret(file: str, marks: str, record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marks, "-x",
         str(HERE / "interpreted" / file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    # 5: every test of the file has the other mark.
    assert done.returncode in (0, 5), done.stdout[-6000:] + done.stderr[-2000:]
    record_property(SKIPPED, skipped_in(done.stdout))


@pytest.mark.parametrize("file", FILES)
def test_quick(file: str, record_property: Callable[[str, object], None]) -> None:
    # test_smoke.py runs the others.
    interpret(file, "not slow and not gpu_smoke", record_property)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_full(file: str, record_property: Callable[[str, object], None]) -> None:
    interpret(file, "slow", record_property)

"""The extension's memory accesses and arithmetic, checked by the compiler's sanitizers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

NO_SANITIZER = 77


@pytest.mark.slow
def test_operations_under_address_and_undefined_behaviour_sanitizers() -> None:
    command = [sys.executable, str(ROOT / "csrc" / "sanitize.py"), "-m", "not slow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NO_SANITIZER:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    # The tests of every instruction set ran, and those of the GPU kernels.
    assert done.stdout.count(" passed") == 4

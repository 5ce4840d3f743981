"""Run the tests with the instruction set of older CPUs; a process has one instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from expert_logits import needs_native

FILES = (
    "test_vector_functions.py",
    "test_mean_cross_entropy.py",
    "test_mean_top_k.py",
    "test_mean_sample.py",
    "test_probability_mean.py",
    "test_zero_weights.py",
    "test_logit_tile.py",
)


@needs_native
@pytest.mark.parametrize("capability", ["portable", "avx2"])
def test_operations_over_experts(capability: str) -> None:
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    chosen = "(agree and native) or bound or special"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = {**os.environ, "FASTGROW_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout

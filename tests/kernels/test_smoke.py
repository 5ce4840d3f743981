"""The smoke tests, which run first on a GPU, cover every kernel and direction."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import launchers
import pytest
from skips import SKIPPED, skipped_in

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_every_launch_is_in_a_smoke_test(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    file = tmp_path / "launched.json"
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu_smoke",
         "-p", "launched", "--launched", str(file), str(HERE / "interpreted")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    record_property(SKIPPED, skipped_in(done.stdout))
    launched = {(launcher, kernel) for launcher, kernel in json.loads(file.read_text())}
    missing = sorted(launchers.launches() - launched)
    assert not missing, f"no test marked gpu_smoke launches {missing}"


def test_every_kernel_has_a_launcher() -> None:
    """Otherwise the test above would not notice a missing kernel."""
    found = {kernel for _, kernel in launchers.launches()}
    assert found == launchers.kernels()
    assert len(found) > 20

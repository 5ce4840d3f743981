"""Fixtures shared by all test folders."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from skips import pytest_terminal_summary as pytest_terminal_summary

# The tests' tensors are small: several threads would spend their time waiting for each other. Set
# before torch is imported, and in the environment, so that processes started by tests follow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes started by a background shell ignore SIGINT, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A GPU machine's plain image may not have hypothesis, and the kernels' tests do not need it.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # No example has to be quick. They are the same on every machine, but for
    # `--hypothesis-profile=explore`.
    patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("explore", **patient)
    settings.register_profile("everywhere", derandomize=True, **patient)
    settings.load_profile("everywhere")

# With FASTGROW_ACCEPTANCE=1 (`make acceptance`), tests that would be skipped fail instead.
MUST_HAVE = os.environ.get("FASTGROW_ACCEPTANCE") == "1"


def missing(reason: str) -> None:
    """Skip the running test, or fail it under `make acceptance`."""
    if MUST_HAVE:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def development_data() -> Path:
    """The folder of development data named by FASTGROW_DATA."""
    root = os.environ.get("FASTGROW_DATA")
    if not root or not Path(root).is_dir():
        missing("FASTGROW_DATA does not name the folder of development data")
    assert root is not None
    return Path(root)


@pytest.fixture(scope="session")
def unifont_file() -> Path:
    """Debian's Unifont outline font (package fonts-unifont)."""
    path = Path("/usr/share/fonts/opentype/unifont/unifont.otf")
    if not path.is_file():
        missing(f"{path} is missing (Debian package fonts-unifont)")
    return path

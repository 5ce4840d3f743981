"""The suite needs only torch, Triton and their dependencies, as in a plain CUDA image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# Everything else is not found, as if it were not installed.
RUN = """
import sys
from importlib.machinery import PathFinder

THERE = {"torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx",
         "jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions", "setuptools",
         "packaging", "nvidia", "fastgrow", "benchmarks"}

class Plain(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        root = name.split(".")[0]
        known = root in THERE or root in sys.stdlib_module_names or root.startswith("_")
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path[:] = [Plain if finder is PathFinder else finder for finder in sys.meta_path]
"""


def in_plain_image(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN + code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_gpu_command_starts_and_says_that_pytest_is_missing() -> None:
    done = in_plain_image("""
try:
    import pytest
except ImportError:
    from benchmarks import gpu
    from benchmarks.command import main
    print(gpu.run_gpu_tests(1.0))
    sys.exit(main(["gpu", "--out", "nowhere"]))
""")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert done.stdout == "skipped: pytest is not installed\n", done.stderr
    assert "no CUDA GPU is available" in done.stderr


def test_no_missing_package_ends_the_tests_of_kernels() -> None:
    """A conftest that cannot be imported ends pytest before the first test."""
    done = in_plain_image("""
THERE |= {"pytest", "_pytest", "pluggy", "iniconfig", "pygments", "py"}
import runpy
for folder in ("tests/gpu", "tests/kernels/interpreted"):
    runpy.run_path(folder + "/conftest.py")
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_operation_is_measured() -> None:
    done = in_plain_image("""
from benchmarks.command import main
sys.exit(main(["--grid", "tiny", "--against", "eager,library", "--seconds", "0.05",
               "--device", "cpu"]))
""")
    assert done.returncode == 0, done.stderr
    assert "ceilings: copy" in done.stdout

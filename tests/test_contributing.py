"""The steps in docs/contributing.md make an operation that passes the shared harness."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastgrow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
PACKAGE = Path(fastgrow.__file__).parent
BLOCK = re.compile(r"```python\n# (new|add to) (\S+)\n(.*?)```", re.S)
MOST_FILES, MOST_STEPS = 5, 10
OPERATION, COMMAND = (
    re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.M)[0]
    for title in ("Add an operation", "Add a command")
)


def with_blocks(section: str, folder: Path) -> Path:
    """A copy of the package and of the harness, with the page's files."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "fastgrow", ignore=ignored)
    kernels = folder / "fastgrow" / "kernels"
    if not kernels.exists():
        shutil.copytree(PACKAGE.parent / "kernels", kernels, ignore=ignored)
    for name in ("conftest.py", "skips.py", "harness.py", "ops/test_every_operation.py"):
        target = folder / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, target)
    for kind, name, text in BLOCK.findall(section):
        path = folder / name if name.startswith("fastgrow") else folder / "fastgrow" / name
        assert path.exists() == (kind == "add to"), name
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text if kind == "new" else f"\n\n{text}")
    return folder


def harness(folder: Path) -> subprocess.CompletedProcess[str]:
    tests = folder / "tests" / "ops" / "test_every_operation.py"
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            str(tests),
            "-k",
            "relu_squared",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_steps_and_files_are_few() -> None:
    assert len(re.findall(r"^\*\*\d+\. ", OPERATION, re.M)) <= MOST_STEPS
    kinds = [kind for kind, _, _ in BLOCK.findall(OPERATION)]
    assert 3 <= kinds.count("new") <= MOST_FILES


def test_the_steps_make_an_operation(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = harness(with_blocks(OPERATION, tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
def test_the_harness_finds_a_wrong_gradient(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    folder = with_blocks(OPERATION, tmp_path)
    kernel = folder / "fastgrow" / "kernels" / "relu_squared.py"
    kernel.write_text(kernel.read_text().replace("* 2 * x", "* 2.001 * x"))
    broken = harness(folder)
    assert "relu_squared triton, 1: error" in broken.stdout, broken.stdout[-3000:]


def test_the_steps_make_a_command(tmp_path: Path) -> None:
    folder = with_blocks(COMMAND, tmp_path)
    model = fastgrow.Decoder(fastgrow.DecoderConfig(50, 16, n_head=2, embedding="trainable"))
    model.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "fastgrow", "count", "model"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{model.num_parameters():,}\n", done.stderr

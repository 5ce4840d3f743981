"""Install copies of this working tree, without a network and separate from its installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import fastgrow.kernels.probe as p, fastgrow._native as n; print(p.VALUE, n.CPU.reason)"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that has to succeed, and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> None:
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *arguments, *offline, cwd=cwd, **environment)


def python_with(site: Path, code: str, *, cwd: Path) -> str:
    """Run code so that fastgrow can only be imported from `site`.

    The site-packages of these tests have a fastgrow, too: -S ignores its .pth files, and those of
    `site` are processed.
    """
    packages = Path(torch.__file__).resolve().parents[1]
    set_up = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({str(packages)!r})"
    return run(sys.executable, "-S", "-c", f"{set_up}\n{code}", cwd=cwd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the working tree without build products, with a module in `kernels/`."""
    copy = tmp_path / "tree"
    names = ("fastgrow", "kernels", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in")
    for name in (*names, "README.md", "LICENSE", "NOTICE", "constraints.txt"):
        source = ROOT / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
            shutil.copytree(source, copy / name, ignore=unwanted)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy2(source, copy / name)
    (copy / "kernels" / "probe.py").write_text("VALUE = 'probe'\n")
    return copy


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside the tree in which to run Python."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))

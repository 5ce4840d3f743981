"""If the build of the extension fails, the package is built and records the reason."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import setuptools
from conftest import pip, python_with, run


def build(tree: Path, *python: str, **environment: str) -> dict[str, dict[str, object]]:
    """Run only the build step and return its record."""
    run(sys.executable, *python, "setup.py", "build_ext", cwd=tree, **environment)
    (record,) = tree.glob("build/lib*/fastgrow/_build.json")
    states: dict[str, dict[str, object]] = json.loads(record.read_text())
    assert not list(tree.glob("build/lib*/fastgrow/_C*.so"))
    assert not any(state["built"] for state in states.values())
    return states


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FASTGROW_BUILD_EXT": "0"}, "FASTGROW_BUILD_EXT=0 excludes it"),
        (
            {"FASTGROW_BUILD_EXT": "yes"},
            "FASTGROW_BUILD_EXT='yes': expected one of auto, 0, cpu, cuda",
        ),
        ({"CXX": "/no/such/compiler"}, "no C++ compiler (/no/such/compiler) is on the PATH"),
        ({"PATH": "/nowhere"}, "no C++ compiler (c++, g++, clang++) is on the PATH"),
    ],
)
def test_reason_is_recorded(tree: Path, environment: dict[str, str], reason: str) -> None:
    assert build(tree, **environment)["_C"]["detail"] == reason


def test_build_without_torch_records_how_to_get_one(tree: Path, tmp_path: Path) -> None:
    """Simulate an isolated build, which only has the packages of build-system.requires."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in Path(setuptools.__file__).resolve().parents[1].glob("*"):
        if folder.name.split("-")[0] in ("setuptools", "wheel", "packaging", "_distutils_hack"):
            (packages / folder.name).symlink_to(folder)
    states = build(tree, "-S", PYTHONPATH=str(packages))
    assert "install torch first, then fastgrow with --no-build-isolation" in str(
        states["_C"]["detail"]
    )


@pytest.mark.skipif(shutil.which("false") is None, reason="there is no command `false`")
def test_failing_compiler_is_quoted_and_an_older_build_does_not_pass_for_this_one(
    tree: Path,
) -> None:
    stale = tree / "build" / "lib.any" / "fastgrow" / "_C.so"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    (tree / "setup.cfg").write_text("[build]\nbuild_lib = build/lib.any\n")
    detail = str(build(tree, CXX="false")["_C"]["detail"])
    assert "failed with status 1" in detail


@pytest.mark.slow
def test_install_with_a_failing_compiler_works(tree: Path, elsewhere: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", tree, "--target", site, cwd=elsewhere, CXX="/bin/false")
    code = """
import torch, fastgrow as fg
from fastgrow.info import report
print(fg.ops.logit_mean([torch.ones(1, 3), torch.zeros(1, 3)]).tolist())
print(report())
"""
    printed = python_with(site, code, cwd=elsewhere)
    assert printed.startswith("[[0.5, 0.5, 0.5]]")
    assert "fastgrow._C is not available" in printed
    assert "failed with status 1" in printed

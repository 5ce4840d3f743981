"""Wheel, sdist and editable install each have the kernels and shadow no other package's."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import PROBE, pip, python_with, run

pytestmark = pytest.mark.slow
# Another project's package of that name has an __init__.py; ours would be a folder without one.
NO_TOP_LEVEL = (
    "import importlib.util as u; s = u.find_spec('kernels'); assert s is None or s.origin"
)


def test_wheel(tree: Path, elsewhere: Path, tmp_path: Path, has_compiler: bool) -> None:
    pip("wheel", ".", "--wheel-dir", tmp_path / "wheels", cwd=tree)
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"fastgrow", "fastgrow-0.1.0.dist-info"}
    assert ("fastgrow/_C.so" in names) == has_compiler
    assert not [name for name in names if "csrc" in name or name.startswith("kernels")]
    site = tmp_path / "site"
    pip("install", wheel, "--target", site, cwd=elsewhere)
    expected = "probe built against torch" if has_compiler else "probe fastgrow._C is not available"
    assert python_with(site, PROBE, cwd=elsewhere).startswith(expected)
    python_with(site, NO_TOP_LEVEL, cwd=elsewhere)


def test_sdist(tree: Path, elsewhere: Path, tmp_path: Path) -> None:
    build = "from setuptools.build_meta import build_sdist as b; print(b('dist'))"
    run(sys.executable, "-c", build, cwd=tree)
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    sources = {file.relative_to(tree).as_posix() for file in tree.glob("csrc/*/*")}
    assert {"LICENSE", "NOTICE", "setup.py", "kernels/probe.py", *sources} <= names
    site = tmp_path / "site"
    pip("install", archive, "--target", site, cwd=elsewhere, FASTGROW_BUILD_EXT="0")
    expected = "probe fastgrow._C is not available: FASTGROW_BUILD_EXT=0 excludes it"
    assert python_with(site, PROBE, cwd=elsewhere).strip() == expected
    python_with(site, NO_TOP_LEVEL, cwd=elsewhere)


def test_editable(tree: Path, elsewhere: Path, tmp_path: Path, has_compiler: bool) -> None:
    # Without --ignore-installed pip would remove the fastgrow of the environment that runs this.
    place = ("--prefix", tmp_path / "prefix", "--ignore-installed")
    pip("install", "--editable", ".", *place, cwd=tree)
    (site,) = (tmp_path / "prefix").glob("lib/python*/site-packages")
    expected = "probe built against torch" if has_compiler else "probe fastgrow._C is not available"
    assert python_with(site, PROBE, cwd=elsewhere).startswith(expected)
    python_with(site, NO_TOP_LEVEL, cwd=elsewhere)
    if has_compiler:
        source = tree / "csrc" / "cpu" / "logit_mean.cpp"
        source.write_text(source.read_text() + "\n")
        older = "probe fastgrow._C is older than csrc/cpu/logit_mean.cpp: rebuild it"
        assert python_with(site, PROBE, cwd=elsewhere).strip() == older


def test_the_repository_root_does_not_shadow_another_kernels(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "kernels"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    code = "import kernels; print(kernels.__file__)"
    assert str(other) in run(sys.executable, "-c", code, cwd=tree, PYTHONPATH=str(other.parent))

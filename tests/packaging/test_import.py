"""`import fastgrow` is fast and needs no optional dependency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastgrow import _native

ROOT = Path(__file__).resolve().parents[2]

IMPORTED = """
import sys
import torch
before = set(sys.modules)
import fastgrow
print(*sorted(set(sys.modules) - before))
"""

WITHOUT = """
from importlib.machinery import PathFinder

ABSENT = ("triton", "PIL", "freetype", "matplotlib", "datasets")
find_spec = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.split(".")[0] in ABSENT else find_spec(name, *rest)
)
import torch
import fastgrow as fg
from fastgrow import _native

_native.CPU = _native.Extension("_C", False, "blocked")
print(fg.ops.logit_mean([torch.ones(1, 2), torch.zeros(1, 2)]).tolist())
fg.use_impl, fg.nn, fg.errors
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_adds_nothing_to_that_of_torch() -> None:
    # `fastgrow.kernels` is the entry of an editable install for a folder elsewhere.
    assert set(python(IMPORTED).split()) <= {"fastgrow", "fastgrow.kernels"}


def test_works_without_triton_and_without_the_extension() -> None:
    assert python(WITHOUT).strip() == "[[0.5, 0.5]]"


def test_broken_extension_is_reported_and_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "_C.so").write_bytes(b"\x7fELF is how it starts, and nothing follows")
    extension = _native._load("_C", tmp_path)
    assert not extension.loaded
    assert "fastgrow._C cannot be loaded" in extension.reason


@pytest.mark.parametrize("record", ["", "{", "[]", '{"_C": 3}', '{"_C": {}}'])
def test_missing_extension_is_reported_whatever_the_record_says(
    tmp_path: Path, record: str
) -> None:
    (tmp_path / "_build.json").write_text(record)
    extension = _native._load("_C", tmp_path)
    assert not extension.loaded
    assert "fastgrow._C is not available: it has not been built" in extension.reason


def test_recorded_reason_is_shown(tmp_path: Path) -> None:
    state = {"_C": {"built": False, "detail": "no compiler was found"}}
    (tmp_path / "_build.json").write_text(json.dumps(state))
    reason = _native._load("_C", tmp_path).reason
    assert reason.endswith("is not available: no compiler was found")


def test_what_it_was_made_from_has_one_digest(tmp_path: Path) -> None:
    def source(sources: dict[str, str]) -> str:
        (tmp_path / "_build.json").write_text(json.dumps({"_C_cuda": {"sources": sources}}))
        return _native._load("_C_cuda", tmp_path).source

    digest = source({"a.cu": "12", "b.h": "34"})
    assert len(digest) == 16
    assert source({"b.h": "34", "a.cu": "12"}) == digest
    assert source({"a.cu": "12", "b.h": "35"}) != digest
    assert source({}) == ""

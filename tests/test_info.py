"""The report lists what is installed, and ends with the command for a faster setup."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgrow import _native, info
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import OPERATIONS


def test_module_prints_the_report() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastgrow.info"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"torch {torch.__version__}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Faster: ")


def test_every_operation_is_explained() -> None:
    lines = info.report().splitlines()
    for name in OPERATIONS:
        assert [line for line in lines if line.startswith(f"  {name}: ")]


def test_operations_of_the_extension_are_listed_for_both_devices() -> None:
    (line,) = [line for line in info.report().splitlines() if line.startswith("    linear_kl: ")]
    assert line == "    linear_kl: on a CPU –; on a GPU fp32, bf16, fp16"


def test_the_backend_of_attention_is_reported() -> None:
    lines = info.report().splitlines()
    at = lines.index("Attention by SDPA")
    assert lines[at + 1].startswith("  training and prefill: ")
    assert lines[at + 2].startswith("  one query: ")


def test_variables_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGROW_IMPL", "logit_mean=eager")
    monkeypatch.setattr(dispatch, "_environment", "logit_mean=eager")
    report = info.report()
    assert "  FASTGROW_IMPL=logit_mean=eager" in report
    assert "  logit_mean: eager (requested by FASTGROW_IMPL)" in report


def test_missing_extension_and_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _native.Extension("_C", False, "fastgrow._C is not available: no C++ compiler")
    monkeypatch.setattr(_native, "CPU", missing)
    report = info.report()
    assert f"  {missing.reason}" in report
    assert "  logit_mean: eager (not native: fastgrow._C is not available" in report
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    assert info.advice().startswith("apt-get install g++ && pip install --no-build-isolation")
    monkeypatch.setattr(
        info.shutil, "which", lambda name: f"/usr/bin/{name}" if "+" in name else None
    )
    assert info.advice().startswith("FASTGROW_BUILD_EXT=auto pip install --no-build-isolation")


def test_nothing_to_do_if_everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "CPU", _native.Extension("_C", True, "built"))
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    monkeypatch.setattr(info, "_extension", list)
    assert info.report().endswith("Faster: nothing to do")


def test_without_a_gpu_tuning_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    lines = info.report().splitlines()
    at = lines.index("Tuning")
    assert lines[at + 1 : at + 3] == ["  no GPU: there is nothing to tune", ""]

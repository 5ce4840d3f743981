"""The report on tuning tables names what is used, what is not and why, on a GPU stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastgrow.kernels import tuned  # noqa: E402
from fastgrow.kernels.tunable import digests  # noqa: E402
from fastgrow.ops._tuning import explain_tuning  # noqa: E402

NAME = "nvidia-abacus-9.json"
NOTHING = "cuda:0 NVIDIA Abacus 9 has no table in use: kernels follow their own rules"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the GPU's table would be shipped; the user's home is empty."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA Abacus 9")
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "tuning")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FASTGROW_AUTOTUNE", raising=False)
    (tmp_path / "tuning").mkdir()
    return tmp_path / "tuning" / NAME


@pytest.fixture
def users(shipped: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "home" / ".cache" / "fastgrow" / "tuning"
    folder.mkdir(parents=True)
    return folder / NAME


def write(path: Path, version: str | None, source: str | None = None) -> None:
    entry = {"configuration": {"block_m": 16}, "source": source}
    entries = {"attention_forward": {"a": entry, "b": entry}, "attention_decode": {"c": entry}}
    path.write_text(json.dumps({"schema": 1, "triton": version, "entries": entries}))


def test_without_a_table_kernels_follow_their_rules(shipped: Path) -> None:
    assert explain_tuning() == [NOTHING]


SHIPPED = "cuda:0 shipped table kernels/tuning/nvidia-abacus-9.json"
KERNELS = "attention_decode 1, attention_forward 2"


def test_a_shipped_table_is_used_whatever_its_triton(shipped: Path) -> None:
    here = triton.__version__
    same_minor = ".".join([*here.split(".")[:2], "99"])
    for version, told in (
        ("3.1", f"measured with triton 3.1 (this is {here})"),
        (same_minor, f"measured with triton {same_minor}"),
        (None, f"of an unknown triton (this is {here})"),
    ):
        write(shipped, version)
        assert explain_tuning() == [f"{SHIPPED}: used, 3 entries {told}: {KERNELS}"]


def test_kernels_that_changed_since_are_named(shipped: Path) -> None:
    """Of a table whose digests are those of today's attention_forward."""
    current = digests(90)["attention_forward"]
    write(shipped, triton.__version__, current)
    (line,) = explain_tuning()
    assert line.endswith(f"{KERNELS}; changed since they were measured: attention_decode")


def test_the_user_s_table_is_used_where_that_is_asked_for(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(users, triton.__version__)
    where = "cuda:0 user's table ~/.cache/fastgrow/tuning/nvidia-abacus-9.json"
    (unread, nothing) = explain_tuning()
    assert unread.startswith(f"{where}: not read without FASTGROW_AUTOTUNE=1, 3 entries")
    assert nothing == NOTHING
    monkeypatch.setenv("FASTGROW_AUTOTUNE", "1")
    (line,) = explain_tuning()
    assert line.startswith(f"{where}: used, 3 entries measured with triton {triton.__version__}: ")
    write(users, "3.1")
    assert explain_tuning()[0].startswith(f"{where}: not used with triton {triton.__version__}")
    assert explain_tuning()[1] == NOTHING


def test_a_malformed_table_is_named_with_the_reason(shipped: Path, users: Path) -> None:
    shipped.write_text('{"schema": 7}')
    users.write_text("{")
    first, second, nothing = explain_tuning()
    assert first == (
        "cuda:0 shipped table kernels/tuning/nvidia-abacus-9.json: cannot be used: "
        "expected an object with schema 1"
    )
    assert "user's table ~/.cache/" in second
    assert "cannot be used: Expecting property name" in second
    assert nothing == NOTHING


def test_a_table_that_cannot_be_read_is_named(shipped: Path) -> None:
    shipped.mkdir()
    assert "cannot be used: Is a directory" in explain_tuning()[0]


def test_a_home_that_does_not_hold_the_cache_is_left_alone(
    users: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "scratch"))
    file = tmp_path / "scratch" / "fastgrow" / "tuning" / NAME
    file.parent.mkdir(parents=True)
    write(file, "3.1")
    assert f"user's table {file}: " in explain_tuning()[0]

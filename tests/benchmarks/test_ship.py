"""`python -m benchmarks ship`: which tables are installed and which are not, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rehearsal
from benchmarks.command import main
from benchmarks.results import Ceilings, Result, save
from benchmarks.ship import TESTED, ship
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.kernels import tuned
from fastgrow.kernels.tuned import read_table

ENTRY = {"configuration": {"block": 32}, "median_ms": 1.0, "default_ms": 1.0, "source": "0123"}
TREE = {
    "schema": 1, "device": "Fake GPU 9000", "capability": 90, "triton": "3.99.1",
    "entries": {"attention_forward": {"bf16/D=32": ENTRY}},
}  # fmt: skip
ENVIRONMENT = {"kind": "cuda", "device": "Fake GPU 9000", "torch": "2.11", "triton": "3.99.1"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder as copied from a GPU machine."""
    folder = tmp_path / "returned"
    folder.mkdir()
    (folder / "tuning.json").write_text(json.dumps(TREE))
    end_tests(folder, "passed, 12 passed")
    return folder


def end_tests(folder: Path, state: str) -> None:
    notes = ["tuning: 1 entries", f"{TESTED}{state}"]
    save(Result("python -m benchmarks gpu", ENVIRONMENT, Ceilings(), [], notes), folder)


def test_the_table_is_put_where_launches_look_for_it(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "kernels")
    assert main(["ship", str(results)]) == 0
    path = tmp_path / "kernels" / "fake-gpu-9000.json"
    assert capsys.readouterr().out.startswith(f"{path}: ")
    assert path == tuned.path_of("Fake GPU 9000")
    assert json.loads(path.read_text()) == TREE
    table = read_table(path)
    entry = table.entries["attention_forward"]["bf16/D=32"]
    assert entry["configuration"] == {"block": 32}
    assert (table.triton, entry["source"]) == ("3.99.1", "0123")


def test_not_where_tests_failed(results: Path, tmp_path: Path) -> None:
    end_tests(results, "failed, 12 passed, 1 failed")
    with pytest.raises(
        ConfigError, match="is not installed: tests on the device: failed, 12 passed"
    ):
        ship(results, tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize("missing", ["tuning.json", "results.json"])
def test_not_without_its_files(
    results: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        ship(results, tmp_path / "kernels")
    assert main(["ship", str(results)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "is not a tuning table: expected an object with schema 1"),
        ({"device": None}, "is not a tuning table: 'device'"),
        ({"entries": {"a": {"b": {}}}}, "is not a tuning table: a b: expected a configuration"),
    ],
)
def test_not_what_is_no_table(
    results: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    tree = {name: value for name, value in {**TREE, **change}.items() if value is not None}
    (results / "tuning.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=reason):
        ship(results, tmp_path / "kernels")


def test_not_an_empty_table(results: Path, tmp_path: Path) -> None:
    (results / "tuning.json").write_text(json.dumps({**TREE, "entries": {}}))
    with pytest.raises(ConfigError, match="is not installed: it has no entry"):
        ship(results, tmp_path / "kernels")


def test_a_table_of_the_extension_alone_is_shipped(results: Path, tmp_path: Path) -> None:
    times = {"native_ms": 0.25, "other_ms": 0.5, "other": "compile", "source": "0123"}
    native = {"mean_argmax": {"bf16/forward/N=64": times}}
    (results / "tuning.json").write_text(json.dumps({**TREE, "entries": {}, "native": native}))
    assert read_table(ship(results, tmp_path / "kernels")).native == native


def test_not_of_a_rehearsal(results: Path, tmp_path: Path) -> None:
    (results / "tuning.json").write_text(json.dumps(TREE | {"device": rehearsal.DEVICE}))
    with pytest.raises(ConfigError, match="it is from a rehearsal"):
        ship(results, tmp_path)
    assert list(tmp_path.glob("*.json")) == []


def test_not_of_a_file(results: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder with results"):
        ship(results / "tuning.json", tmp_path)

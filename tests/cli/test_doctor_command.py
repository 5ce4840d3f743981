"""`fastgrow doctor` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgrow.cli import main
from fastgrow.cli.settings import shipped_configs
from fastgrow.training import Batches

QUICK = ("demo-quick", "nine-layers-16-bit")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["doctor", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the cat sat on the mat number {i:b} of the day" for i in range(99)))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
substrate: {{characters: "abcdefghijklmnopqrstuvwxyz01 ", n_ngrams: 0, n_components: 16}}
model: {{d_model: 32, n_head: 2, max_seq_len: 32}}
data: [{{source: {text}}}]
schedule: {{stages: [{{tokens: 512}}, {{tokens: 512, insertion: identity}}]}}
train: {{batch_size: 4}}
out: {tmp_path / "run"}
cache: {tmp_path / "tokens"}
"""
    )
    return path


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in shipped_configs()],
)
def test_every_shipped_configuration(capsys, monkeypatch, tmp_path: Path, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, name, "--steps", "2")
    assert status == 0, out
    assert "all checks hold" in out
    # Without the author's lists, a synthetic run is used, and the output states it.
    assert ("SYNTHETIC" in out) == (not name.startswith("demo"))
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_model_and_data(capsys, config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    status, out, _ = run(capsys, str(config), "train.accumulate=3")
    assert status == 0
    assert "SYNTHETIC" not in out
    assert "4 steps per stage of 2 x 2 x 32 tokens" in out
    assert sorted(config.parent.rglob("*")) == before


def test_the_trunk_of_the_configuration_is_examined(capsys, config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    for more in ([], ["--synthetic"]):
        status, out, _ = run(capsys, str(config), "trunk.cache=disk", "--steps", "2", *more)
        assert status == 0
        assert "stage 2, trunk: cached against recomputed: " in out
        assert sorted(config.parent.rglob("*")) == before


def test_data_that_cannot_be_opened_is_replaced_and_named(capsys, config: Path) -> None:
    (config.parent / "text.txt").unlink()
    status, out, _ = run(capsys, str(config), "--steps", "2")
    assert status == 0
    assert "SYNTHETIC" in out
    assert "text.txt: no such file or folder" in out


def test_a_synthetic_run_on_request(capsys, config: Path) -> None:
    status, out, _ = run(capsys, str(config), "--synthetic", "--steps", "2", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["healthy"]
    assert found["notes"][0].startswith("SYNTHETIC")


def test_a_failed_check_is_named_and_is_the_status(capsys, config: Path, monkeypatch) -> None:
    monkeypatch.setattr(Batches, "load_state_dict", lambda batches, state: None)
    status, out, _ = run(capsys, str(config), "--steps", "2")
    assert status == 1
    assert "all checks hold" not in out
    assert "stage 1, data cursor: differs from the saved position" in out
    row = next(line for line in out.splitlines() if line.startswith("data cursor"))
    assert row.split()[2:] == ["FAILED", "FAILED"]

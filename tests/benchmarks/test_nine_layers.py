"""A small version of the nine-block run: grown, stopped and resumed as on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import nine_layers, rehearsal
from benchmarks.nine_layers import METRICS, run_nine_layers
from fastgrow.cli.settings import find_config

SMALL = rehearsal.GROWTH.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_small_one_is_resumed_at_its_checkpoint(tmp_path: Path) -> None:
    config = str(rehearsal.GROWTH)
    result = run_nine_layers(tmp_path / "out", 1200, device="cpu", config=config, steps=3)
    assert (result["state"], result["config"]) == ("passed", "rehearsal"), result
    first, second = result["halves"]
    assert first["status"] == second["status"] == nine_layers.STOPPED
    assert first["steps"][0] == 1
    assert second["steps"][0] == first["steps"][-1] + 1 == first["checkpoint_step"] + 1
    for half in result["halves"]:
        assert len(half["steps"]) >= 3
        assert 0 < half["last_loss"] < 10
        assert half["tokens_per_second"] > 0
        assert half["peak_memory_bytes"] > 1 << 20
        assert half["implementations"]["attention"] == "sdpa"
    assert result["substrate_seconds"] > 0
    json.dumps(result)
    # Only small files are kept.
    assert [file.name for file in (tmp_path / "out").iterdir()] == [METRICS]
    rows = (tmp_path / "out" / METRICS).read_text().splitlines()
    assert sum("loss" in json.loads(row) for row in rows) == second["steps"][-1]


def test_the_rehearsal_s_model_goes_on_the_substrate_that_is_handed_over() -> None:
    rehearsed, real = (
        yaml.safe_load(find_config(name).read_text(encoding="utf-8"))["model"]
        for name in (str(rehearsal.GROWTH), "nine-layers-unicode")
    )
    assert rehearsed["d_model"] % real["n_embed"] == 0


@pytest.mark.slow
def test_an_error_is_told_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL.replace("n_head: 8", "n_head: 7"))
    config = str(tmp_path / "small.yaml")
    result = run_nine_layers(tmp_path / "out", 1200, device="cpu", config=config, steps=1)
    assert result["state"].startswith("failed: `fastgrow grow` ended with status 1: fastgrow: ")
    assert "n_head" in result["state"]


def test_before_each_half_it_is_told_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"steps": [1], "error": ""}
    monkeypatch.setattr(nine_layers, "_prepare", lambda *arguments: {"train": {}})
    monkeypatch.setattr(nine_layers, "_half", lambda *arguments, before: half)
    monkeypatch.setattr(nine_layers, "_not_resumed", lambda *arguments: "")
    results: list[Any] = []
    result = run_nine_layers(
        tmp_path,
        1,
        device="cpu",
        on_half=lambda found: results.append(json.loads(json.dumps(found))),
    )
    assert [(found["state"], len(found["halves"])) for found in results] == [
        ("unfinished: killed in its first half", 0),
        ("unfinished: killed in its second half", 1),
    ]
    assert (result["state"], len(result["halves"])) == ("passed", 2)


def test_what_is_not_bundled_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped configuration needs n-gram lists and a data set from the Hub."""
    import yaml

    from fastgrow.cli import settings

    requested: list[dict[str, Any]] = []

    class Drawn:
        def __init__(self, **options: Any) -> None:
            requested.append(options)

        def build(self) -> Drawn:
            return self

        def save(self, folder: Path) -> None:
            pass

    monkeypatch.setattr(settings, "SubstrateSettings", Drawn)
    nine_layers._prepare(tmp_path, "nine-layers-unicode", None)
    assert requested == [{"n_components": 1024}]
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["model"]["vocab_size"] == 65_536
    assert tree["substrate"] == {"path": str(tmp_path / "substrate")}
    (source,) = tree["data"]
    assert len(Path(source["source"]).read_text().splitlines()) > 3000


@pytest.mark.parametrize(
    ("saved", "steps", "message"),
    [
        (3, [4, 5], ""),
        (3, [3, 4], "continued at step 3"),
        (4, [5, 6], "missing or were made twice"),
    ],
)
def test_a_run_that_does_not_go_on_where_it_stopped_is_told(
    saved: int, steps: list[int], message: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"global_step": step, "loss": 1.0} for step in (1, 2, 3, *steps)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    halves = [{"checkpoint_step": saved, "steps": [1, 2, 3]}, {"steps": steps}]
    found = nine_layers._not_resumed(tmp_path, halves)
    assert found == message or (message and message in found)

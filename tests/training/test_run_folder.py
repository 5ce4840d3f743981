"""A run's folder: what it computes decides whether to go on, not what it was begun on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastgrow
from fastgrow.errors import ConfigError
from fastgrow.training import claim_folder, environment
from fastgrow.training.environment import describe_environment


def test_another_machine_goes_on_with_the_run(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "1"})
    begun = (tmp_path / "run.json").read_bytes()
    assert json.loads(begun) == {"seed": 3, "environment": {"torch": "1"}}
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "2"})
    claim_folder(tmp_path, {"seed": 3}, "auto")
    assert (tmp_path / "run.json").read_bytes() == begun
    with pytest.raises(ConfigError, match="another seed"):
        claim_folder(tmp_path, {"seed": 4}, "auto", {"torch": "1"})


def test_a_folder_of_before_there_were_environments_goes_on(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"seed": 3}, "auto")
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 3}
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "2"})


def test_what_chooses_the_order_of_sums_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.CHOOSING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert describe_environment(torch.device("cpu"))["chosen"] == {"MKL_CBWR": "COMPATIBLE"}


def test_the_environment_is_this_one() -> None:
    found = describe_environment(torch.device("cpu"))
    assert found["fastgrow"] == fastgrow.__version__
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found

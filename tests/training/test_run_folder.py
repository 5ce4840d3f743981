"""A run folder: settings decide whether the run can be resumed, the environment does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastgrow
from fastgrow.errors import ConfigError
from fastgrow.training import claim_folder, environment
from fastgrow.training.environment import describe_environment


def test_a_run_can_be_resumed_on_another_machine(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "1"})
    begun = (tmp_path / "run.json").read_bytes()
    assert json.loads(begun) == {"seed": 3, "environment": {"torch": "1"}}
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "2"})
    claim_folder(tmp_path, {"seed": 3}, "auto")
    assert (tmp_path / "run.json").read_bytes() == begun
    with pytest.raises(ConfigError, match="another seed"):
        claim_folder(tmp_path, {"seed": 4}, "auto", {"torch": "1"})


def test_a_folder_without_a_recorded_environment_can_be_resumed(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"seed": 3}, "auto")
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 3}
    claim_folder(tmp_path, {"seed": 3}, "auto", {"torch": "2"})


def test_variables_that_select_instructions_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.INSTRUCTION_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert describe_environment(torch.device("cpu"))["chosen"] == {"MKL_CBWR": "COMPATIBLE"}


def test_the_environment_describes_this_machine() -> None:
    found = describe_environment(torch.device("cpu"))
    assert found["fastgrow"] == fastgrow.__version__
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found

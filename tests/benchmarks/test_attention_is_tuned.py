"""Attention's kernels take part in the tuning, and its launchers read what comes of it."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_time import FakeClock

from benchmarks import tuning

tunable = pytest.importorskip("fastgrow.kernels.tunable", reason="triton is not installed")

from fastgrow.kernels import tuned  # noqa: E402
from fastgrow.kernels.attention_arguments import bucket  # noqa: E402

MODULE = "fastgrow.kernels.attention_tuning"


def nothing_spills(tunable: object, configuration: dict[str, int]) -> dict[str, int]:
    return {"spills": 0, "shared": 0}


def cost_of(tunable: object, configuration: dict[str, int]) -> Callable[[], object]:
    """Stands for a launch: small tiles and few stages are fast."""
    return lambda: float(sum(configuration.values()))


def test_a_table_of_every_kernel_is_made_and_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pool(workers: int, mp_context: object) -> concurrent.futures.Executor:
        return concurrent.futures.ThreadPoolExecutor(workers)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(tunable.Tunable, "build", nothing_spills)
    monkeypatch.setattr(tunable.Tunable, "launcher", cost_of)

    def seconds(result: object) -> float:
        assert isinstance(result, float)
        return result

    assert MODULE in tuning.kernel_modules()
    found = tuning.tune([MODULE], 90, FakeClock(seconds), 60)
    assert found["notes"] == []
    assert set(found["entries"]) == {"attention_forward", "attention_d_query", "attention_d_key"}
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"schema": tuning.SCHEMA, "entries": found["entries"]}))
    read = tuned.read_table(file)
    key = bucket(torch.bfloat16, 64, 4096)
    assert read["attention_forward"][key] == {
        "block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2
    }  # fmt: skip
    assert read["attention_d_key"][key] == {
        "block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2
    }  # fmt: skip

"""Attention's kernels take part in the tuning, and its launchers read what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_time import FakeClock

from benchmarks import tuning

tunable = pytest.importorskip("fastgrow.kernels.tunable", reason="triton is not installed")

from fastgrow.kernels.attention_arguments import bucket  # noqa: E402
from fastgrow.kernels.attention_decode import decode_bucket  # noqa: E402
from fastgrow.kernels.tuning_table import read_table  # noqa: E402

BF16 = torch.bfloat16
MODULE = "fastgrow.kernels.attention_tuning"


def nothing_spills(tunable: object, configuration: object, only: str) -> dict[str, int]:
    return {"spills": 0, "shared": 0}


def cost_of(tunable: object) -> Callable[[dict[str, int]], object]:
    """Stands for a launch: small tiles and few stages are fast."""
    return lambda configuration: float(sum(configuration.values()))


@pytest.mark.usefixtures("compiled_in_this_process")
def test_a_table_of_every_kernel_is_made_and_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tunable.Tunable, "build", nothing_spills)
    monkeypatch.setattr(tunable.Tunable, "launcher", cost_of)

    def seconds(result: object) -> float:
        assert isinstance(result, float)
        return result

    assert MODULE in tuning.kernel_modules()
    found = tuning.tune([MODULE], 90, FakeClock(seconds), 60)
    assert found["notes"] == []
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"schema": tuning.SCHEMA, "entries": found["entries"]}))
    read = read_table(file).entries
    key = bucket(BF16, 64, 4096)
    assert read["attention_forward"][key] == {
        "block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2
    }  # fmt: skip
    assert read["attention_d_key"][key] == {
        "block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2
    }  # fmt: skip
    assert read["attention_decode"][decode_bucket(BF16, 64, 4096, 512)] == {
        "block_n": 64, "programs": 2, "num_warps": 2, "num_stages": 2
    }  # fmt: skip


def test_head_dimension_32_comes_first() -> None:
    order = [e.tunable.bucket for e in tuning.entrants(tuning.kernel_modules(), 90)]
    assert {name[:10] for name in order[:6]} == {"bf16/D=32/"}
    half = [name for name in order if name.startswith("bf16")]
    assert half == order[: len(half)], "bf16 stands before the other dtypes"

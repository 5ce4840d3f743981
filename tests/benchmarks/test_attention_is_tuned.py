"""Attention's kernels are tuned, and its launchers use the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_time import FakeClock
from tuned_here import tuned_here

from benchmarks import tuning
from benchmarks.cases import attention

tunable = pytest.importorskip("fastgrow.kernels.tunable", reason="triton is not installed")

from fastgrow.kernels import attention_tuning, compile_offline  # noqa: E402
from fastgrow.kernels.attention import bucket, decode_bucket  # noqa: E402
from fastgrow.kernels.tuned import SCHEMA, read_table, tuning_modules  # noqa: E402
from fastgrow.ops.core import dispatch  # noqa: E402

BF16 = torch.bfloat16
MODULE = "fastgrow.kernels.attention_tuning"


def nothing_spills(tunable: object, configuration: object, only: str) -> dict[str, int]:
    return {"spills": 0, "shared": 0}


def cost_of(tunable: object) -> Callable[[dict[str, int]], object]:
    """A fake launch: small tiles and few stages are fast."""
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

    assert MODULE in tuning_modules()
    found = tuned_here([MODULE], 90, FakeClock(seconds), 60)
    assert found["notes"] == []
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"schema": SCHEMA, "entries": found["entries"]}))
    read = read_table(file).entries
    key = bucket(BF16, 64, 4096)
    assert read["attention_forward"][key]["configuration"] == {
        "block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2
    }  # fmt: skip
    assert read["attention_d_key"][key]["configuration"] == {
        "block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2
    }  # fmt: skip
    assert read["attention_decode"][decode_bucket(BF16, 64, 4096, 512)]["configuration"] == {
        "block_n": 64, "programs": 2, "num_warps": 2, "num_stages": 2
    }  # fmt: skip


def strides(launches: list[compile_offline.Launch]) -> dict[str, dict[str, int]]:
    """Of the tensors of each kernel: their arguments end in the letters of the dimensions."""
    return {
        launch.name: {
            name: value for name, value in launch.arguments.items()
            if name.endswith(("_b", "_h", "_t")) and isinstance(value, int)
        }
        for launch in launches
    }  # fmt: skip


@pytest.mark.parametrize("dim", [32, 128])
def test_what_is_tuned_lies_in_memory_as_in_a_model(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the case's tensors do; and the gradient as the output, which a projection reads."""
    monkeypatch.setattr(dispatch, "triton_can_run", lambda tensor: (True, ""))
    shape = next(s for s in attention.FAMILY.grids["gpu"] if (s["D"], s["T"]) == (dim, 1024))
    inputs = attention.FAMILY.inputs({**shape, "B": 1}, BF16, torch.Generator())

    def step() -> None:
        tensors = [inputs[name].requires_grad_() for name in attention.FAMILY.differentiate]
        out = attention.FAMILY.call(inputs, "triton")
        assert isinstance(out, torch.Tensor)
        torch.autograd.grad(out, tensors, torch.empty_like(out))

    in_use = strides(compile_offline.recorded(step))
    kernels = ("attention_forward", "attention_d_query", "attention_d_key")
    for found in attention_tuning.tunables(90):
        if found.kernel in kernels and found.bucket == bucket(BF16, dim, 1024):
            tuned = strides(found.launches(found.candidates[0]))
            assert found.function in tuned
            assert tuned == {name: in_use[name] for name in tuned}


def test_head_dimension_32_comes_first() -> None:
    order = [e.tunable.bucket for e in tuning.entrants(tuning_modules(), 90)]
    assert {name[:10] for name in order[:6]} == {"bf16/D=32/"}
    half = [name for name in order if name.startswith("bf16")]
    assert half == order[: len(half)], "bf16 must precede the other dtypes"

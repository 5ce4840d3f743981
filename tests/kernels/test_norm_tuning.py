"""Candidates of the norms' kernels, and that a table's choice is launched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

norm = pytest.importorskip("fastgrow.kernels.norm", reason="triton is not installed")

from fastgrow.kernels import compile_offline, norm_tuning, tuned  # noqa: E402
from fastgrow.kernels.calls import NormCall  # noqa: E402

BF16 = torch.bfloat16


def test_candidates_are_different_and_begin_with_the_default() -> None:
    found = norm_tuning.tunables(90)
    assert len({(t.kernel, t.bucket) for t in found}) == len(found) == 10
    for t in found:
        assert len(t.candidates) >= 6
        assert t.candidates[0] == dataclasses.asdict(t.default)


def test_a_table_of_the_gpu_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"rows": 2, "num_warps": 8, "num_stages": 4, "programs": 2}
    entry = {"bf16/D=1024": {"configuration": chosen, "median_ms": 1.0}}
    table = {"schema": 1, "entries": {"norm_forward": entry, "norm_backward": entry}}
    (tmp_path / "nvidia-abacus-9.json").write_text(json.dumps(table))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tuned, "gpu_name", lambda device: "NVIDIA Abacus 9")
    tuned.forget()

    def launched(dim: int) -> list[tuple[int, int]]:
        x, statistics = torch.empty(9, dim, dtype=BF16, device="meta"), torch.empty(9)
        wanted = {"for_input": True, "for_weight": True, "for_bias": True}

        def step() -> None:
            call = NormCall(x, None, None, None, 1e-5, True, BF16)
            norm.forward(call)
            norm.backward(x, None, x, statistics, statistics, None, parameter_dtype=BF16, **wanted)

        launches = compile_offline.recorded(step)[:2]
        assert launches[1].arguments["STAGES"] == (4 if dim <= 1024 else 3)
        return [(x.arguments["BLOCK_M"], x.options["num_warps"]) for x in launches]

    assert launched(1024) == launched(600) == [(2, 8), (2, 8)]
    assert launched(2048) == [(1, 2), (1, 8)]
    tuned.forget()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_no_candidate_spills(index: int) -> None:
    tunable = norm_tuning.tunables(90)[index]
    for candidate in tunable.candidates:
        assert tunable.build(candidate)["spills"] == 0, candidate

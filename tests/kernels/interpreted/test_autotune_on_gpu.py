"""FASTGROW_AUTOTUNE=1 with real launches; what does not need a GPU is in test_autotune.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import INTERPRETED

from fastgrow.kernels import autotune, tuned
from fastgrow.ops import attention

pytestmark = pytest.mark.skipif(INTERPRETED, reason="configurations are timed on a GPU alone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache; two candidates of each kernel, so that compiling takes seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FASTGROW_AUTOTUNE", "1")
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "nothing")
    measure = autotune.measure

    def measure_two(tunable):  # type: ignore[no-untyped-def]
        object.__setattr__(tunable, "others", tunable.others[:1])
        return measure(tunable)

    monkeypatch.setattr(autotune, "measure", measure_two)
    # It measures nothing where runs are to be the same.
    torch.use_deterministic_algorithms(False)
    tuned.forget()
    autotune.forget()
    yield tmp_path / "fastgrow" / "tuning"
    tuned.forget()
    autotune.forget()


def test_a_launch_measures_its_kernel_once_and_is_right(cache: Path) -> None:
    q = torch.randn(1, 2, 300, 32, device="cuda").to(torch.bfloat16)
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    out = attention(q, q, q, impl="triton")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.testing.assert_close(out, attention(q, q, q, impl="eager"), rtol=2e-2, atol=2e-2)
    (file,) = cache.glob("*.json")
    entry = json.loads(file.read_text())["entries"]["attention_forward"]["bf16/D=32/T=1024"]
    assert entry["median_ms"] > 0
    written = file.stat().st_mtime_ns
    attention(q, q, q, impl="triton")
    assert file.stat().st_mtime_ns == written


def test_nothing_is_measured_while_a_graph_is_captured(cache: Path) -> None:
    q = torch.randn(1, 2, 300, 64, device="cuda").to(torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    attention(q, q, q, impl="triton")
    torch.use_deterministic_algorithms(False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, q, q, impl="triton")
    graph.replay()
    torch.testing.assert_close(out, attention(q, q, q, impl="eager"), rtol=2e-2, atol=2e-2)
    assert not list(cache.glob("*.json"))

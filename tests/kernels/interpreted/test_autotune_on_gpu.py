"""FASTGROW_AUTOTUNE=1 with real launches; tests without a GPU are in test_autotune.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import INTERPRETED
from triton import knobs

from fastgrow.kernels import autotune, tuned
from fastgrow.ops import attention

pytestmark = pytest.mark.skipif(INTERPRETED, reason="configurations are timed on a GPU alone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Triton's cache; two candidates of each kernel, so that compiling takes seconds."""
    all_tunables = autotune.all_tunables

    def two_of_each(capability):  # type: ignore[no-untyped-def]
        return [dataclasses.replace(t, others=t.others[:1]) for t in all_tunables(capability)]

    monkeypatch.setattr(autotune, "all_tunables", two_of_each)
    monkeypatch.setattr(tuned, "AUTOTUNING", True)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "nothing")
    # Nothing is measured with deterministic algorithms.
    torch.use_deterministic_algorithms(False)
    tuned.forget()
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield tmp_path
    tuned.forget()


def test_a_launch_measures_its_kernel_once_and_is_right(cache: Path) -> None:
    q = torch.randn(1, 2, 300, 32, device="cuda").to(torch.bfloat16)
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    out = attention(q, q, q, impl="triton")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.testing.assert_close(out, attention(q, q, q, impl="eager"), rtol=2e-2, atol=2e-2)
    (file,) = cache.rglob(autotune.FILE)
    entry = json.loads(file.read_text())
    assert entry["configuration"] in [candidate for _, candidate in entry["milliseconds"]]
    assert all(time > 0 for time, _ in entry["milliseconds"])
    written = file.stat().st_mtime_ns
    tuned.forget()
    attention(q, q, q, impl="triton")
    assert file.stat().st_mtime_ns == written


def test_nothing_is_measured_while_a_graph_is_captured(cache: Path) -> None:
    q = torch.randn(1, 2, 300, 64, device="cuda").to(torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    attention(q, q, q, impl="triton")
    torch.use_deterministic_algorithms(False)
    # So that it is asked for again.
    tuned.forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, q, q, impl="triton")
    graph.replay()
    torch.testing.assert_close(out, attention(q, q, q, impl="eager"), rtol=2e-2, atol=2e-2)
    assert not list(cache.rglob(autotune.FILE))

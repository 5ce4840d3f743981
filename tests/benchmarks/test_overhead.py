"""Host time of a call without a GPU: which parts of a launch are omitted and counted."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("launches are interpreted, not stubbed", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from benchmarks import overhead
from benchmarks.command import main
from benchmarks.overhead_calls import CALLS
from benchmarks.stubbed import launches_stubbed
from fastgrow import ops
from fastgrow.errors import ConfigError
from fastgrow.kernels import norm
from fastgrow.ops.core import registration
from fastgrow.ops.core.dispatch import OPERATIONS, Operation
from fastgrow.ops.norms import triton as norms_triton

ROOT = Path(__file__).resolve().parents[2]


@triton.jit(do_not_specialize=["n"])
def count_kernel(X, n, stride, SIZE: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    pass


def test_variants_are_counted_as_triton_keeps_them() -> None:
    x = torch.zeros(64)
    with launches_stubbed() as variants:
        for n, stride in ((1, 16), (2, 16), (16, 32), (2**20, 48)):
            count_kernel[(1,)](x, n, stride, SIZE=16)
        assert variants.count() == {"count_kernel": 1}
        count_kernel[(1,)](x, 2, 17, SIZE=16)
        count_kernel[(1,)](x, 2, 1, SIZE=16)
        count_kernel[(1,)](x[1:], 2, 16, SIZE=16)
        count_kernel[(1,)](x, 2, 16, SIZE=32)
        count_kernel[(1,)](x, 2, 16, SIZE=32, num_warps=8)
        assert variants.count() == {"count_kernel": 6}
    with launches_stubbed() as variants:
        assert variants.count() == {}


def test_afterwards_a_cpu_is_a_cpu_again() -> None:
    x = torch.zeros(2, 16)
    with launches_stubbed():
        assert ops.layer_norm(x, residual=x, impl="triton")[0].shape == x.shape
    with pytest.raises(ConfigError, match="cannot run"):
        ops.layer_norm(x, impl="triton")


@pytest.mark.parametrize(("pass_", "launched"), [("forward", 1), ("full", 3)])
def test_time_is_told_of_the_part_that_it_is_spent_in(
    monkeypatch: pytest.MonkeyPatch, pass_: str, launched: int
) -> None:
    now = 0.0

    def slow(owner: Any, name: str, microseconds: float) -> None:
        original = getattr(owner, name)

        def slowed(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += 1e-6 * microseconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slowed)

    def clock() -> float:
        nonlocal now
        now += 1e-12
        return now

    monkeypatch.setattr(overhead.time, "perf_counter", clock)
    monkeypatch.setattr(overhead, "SAMPLE_SECONDS", 1e-12)
    monkeypatch.setattr(overhead, "ROUNDS", 2)
    slow(sys.modules["fastgrow.ops.norms.call"], "_norm", 1)
    slow(Operation, "_override", 10)
    if pass_ == "full":
        slow(registration, "distinct", 100)
    else:
        slow(norms_triton, "needs_gradient", 100)
    slow(norm, "forward", 1_000)
    slow(norm, "backward", 2_000)
    slow(JITFunction, "run", 10_000)
    (call,) = (call for call in CALLS if call.op == "layer_norm")
    (row,) = overhead.overhead([dataclasses.replace(call, passes=(pass_,))], sweeps=1)
    launcher = 3_000 if pass_ == "full" else 1_000
    parts = {"checks": 1, "dispatch": 10, "op": 100, "launcher": launcher}
    assert row.parts == pytest.approx(parts | {"launch": 10_000 * launched}, abs=0.01)
    assert row.total == pytest.approx(sum(row.parts.values()))
    assert len(row.launches) == launched
    assert row.torch_total == pytest.approx(0, abs=0.01)


def test_every_operation_with_kernels_is_timed() -> None:
    timed = {call.op.split()[0].rstrip(",") for call in CALLS}
    with_kernels = {name for name, op in OPERATIONS.items() if "triton" in op.implementations}
    assert timed <= with_kernels
    # Keys are rotated by attention's launcher, which is timed with it.
    assert with_kernels - timed <= {"rope"}


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "ROUNDS", 1)
    monkeypatch.setattr(overhead, "SAMPLE_SECONDS", 1e-6)
    assert main(["overhead", "--sweeps", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["op"] for row in result["rows"]} == {call.op for call in CALLS}
    assert all(row["launches"] and row["total"] > 0 for row in result["rows"])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text == overhead.markdown(result)
    assert text in capsys.readouterr().out
    assert str(tmp_path) not in text


def test_the_page_has_the_table_of_its_result_file() -> None:
    (folder,) = (ROOT / "benchmarks" / "results").glob("cpu-*/overhead")
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    written = (folder / "results.md").read_text(encoding="utf-8")
    assert overhead.markdown(result) == written
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len(table) > len(CALLS)
    assert "\n".join(table) in page
    total = {(row["op"], row["pass_"]): row["total"] for row in result["rows"]}
    assert total["layer_norm", "forward"] <= 60
    assert total["layer_norm", "full"] <= 260
    assert total["attention", "forward"] <= 80
    assert total["attention", "full"] <= 300
    assert total["attention, decoding with rope", "forward"] <= 100

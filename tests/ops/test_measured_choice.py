"""Whether the automatic choice uses `native` on a GPU: by its table, with a simulated GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgrow.kernels import tuned
from fastgrow.kernels.tuned import Table
from fastgrow.ops.core import extension
from fastgrow.ops.core.measured import FEW, MANY, has_few, key, native_pays

GPU = "NVIDIA Abacus 9"
BF16 = torch.bfloat16
YES = (True, "")
UNKNOWN = (False, f"it has not been measured on this GPU: {GPU}")
SLOWER = (False, "add in place + topk is faster there (0.52 against 0.613 ms)")


def times(native: float, other: float, name: str = "compile") -> dict[str, Any]:
    return {"native_ms": native, "other_ms": other, "other": name, "source": "0123"}


TABLE = Table(
    native={
        "mean_argmax": {
            "bf16/forward/N=64": times(0.5, 0.5),
            "bf16/forward/N=4096": times(0.6125, 0.52, "add in place + topk"),
            "fp32/full/N=4096": times(1, 2),
        },
    }
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated GPU, whose tensors are `meta` tensors."""
    monkeypatch.setattr(tuned, "gpu_name", lambda device: GPU)
    monkeypatch.setattr(extension, "GPU", "meta")
    tuned.forget()
    yield
    tuned.forget()


@pytest.fixture
def table() -> Iterator[None]:
    """The GPU has TABLE."""
    with tuned.standing_in(GPU, TABLE):
        yield


def on_gpu(rows: int, dtype: torch.dtype = BF16) -> list[Tensor]:
    return [torch.empty(rows, 8, dtype=dtype, device="meta")] * 2


def test_it_is_used_where_it_was_no_slower(table: None) -> None:
    assert native_pays("mean_argmax", on_gpu(1), False) == YES
    assert native_pays("mean_argmax", on_gpu(MANY, torch.float32), True) == YES


def test_the_faster_one_is_named_with_both_times(table: None) -> None:
    assert native_pays("mean_argmax", on_gpu(MANY), False) == SLOWER


def test_few_and_many_rows_have_separate_entries(table: None) -> None:
    assert (FEW, MANY) == (64, 4096)
    found = [native_pays("mean_argmax", on_gpu(n), False) for n in (FEW, FEW + 1)]
    assert found == [YES, SLOWER]
    batches = [torch.empty(13, 5, 8, dtype=BF16, device="meta")]
    assert native_pays("mean_argmax", batches, False) == SLOWER
    assert key("bf16", "full", FEW) == "bf16/full/N=64"
    assert key("bf16", "full", FEW + 1) == "bf16/full/N=4096"


def test_native_is_not_used_if_it_was_not_measured(table: None) -> None:
    assert native_pays("mean_top_k", on_gpu(1), False) == UNKNOWN
    assert native_pays("mean_argmax", on_gpu(1), True) == UNKNOWN
    assert native_pays("mean_argmax", on_gpu(1, torch.float16), False) == UNKNOWN
    assert native_pays("mean_argmax", on_gpu(1, torch.float64), False) == UNKNOWN


def test_a_gpu_may_have_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    assert native_pays("mean_argmax", on_gpu(1), False) == UNKNOWN


def test_a_cpu_reads_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tuned, "shipped")
    assert native_pays("mean_argmax", [torch.empty(1, 8)], True) == YES


def test_triton_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    # Importing it would raise.
    monkeypatch.setitem(sys.modules, "triton", None)
    file = tmp_path / "nvidia-abacus-9.json"
    entries = '"entries": {"a_kernel": {"a": {"configuration": {"num_warps": 4}}}}'
    native = '"native": {"mean_argmax": {"bf16/forward/N=64": {"native_ms": 1, "other_ms": 2, '
    file.write_text(f'{{"schema": 1, "triton": "2.0", {entries}, {native}"other": "eager"}}}}}}}}')
    assert native_pays("mean_argmax", on_gpu(1), False) == YES


def test_a_second_query_reads_nothing(table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = on_gpu(1)
    assert native_pays("mean_argmax", logits, False) == YES
    monkeypatch.delattr(tuned, "shipped")
    assert native_pays("mean_argmax", logits, False) == YES


def compiled(counted: list[int], **options: Any) -> Callable[[list[Tensor]], Tensor]:
    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        counted.append(1)
        return graph.forward

    def step(logits: list[Tensor]) -> Tensor:
        ok, why = native_pays("mean_argmax", logits, False)
        assert ok or why == SLOWER[1]
        return logits[0] * (2 if ok else 3)

    return torch.compile(step, fullgraph=True, backend=counting, **options)


def test_it_works_within_a_graph(table: None) -> None:
    graphs: list[int] = []
    step = compiled(graphs, dynamic=True)
    for rows in (3, 7, FEW, FEW + 1, 100, MANY):
        step(on_gpu(rows))
    assert len(graphs) == 2, "one of few and one of many rows"


def test_rows_are_not_compared_if_the_result_is_the_same() -> None:
    both = {key("bf16", "forward", rows): times(1, 2) for rows in (FEW, MANY)}
    graphs: list[int] = []
    with tuned.standing_in(GPU, Table(native={"mean_argmax": both})):
        step = compiled(graphs, dynamic=True)
        for rows in (3, FEW + 1, MANY):
            step(on_gpu(rows))
    assert len(graphs) == 1


def test_rows_that_are_picked_within_a_graph_count_as_many() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def step(x: Tensor) -> Tensor:
        picked = x[(x[:, 0] > 0).nonzero().squeeze(1)]
        return picked * (2 if has_few(picked.shape[:-1].numel()) else 3)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert step(torch.ones(100, 2)[:, :1]).unique().tolist() == [3]

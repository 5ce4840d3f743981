"""A GPU's tuning table gets its entries about the extension from a run's rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.case import Case
from benchmarks.cases import families
from benchmarks.contenders import contenders
from benchmarks.gpu_result import table_from
from benchmarks.native_times import NATIVE, native_times
from benchmarks.record import Record
from benchmarks.results import Row
from fastgrow.kernels import tuned
from fastgrow.kernels.tuned import table_of

EXPERTS = [
    "logit_mean", "logit_mean-into", "mean_cross_entropy", "mean_log_softmax_gather",
    "mean_argmax", "mean_top_k", "mean_sample", "mean_sample-cut", "probability_mean",
    "probability_mean_gather",
]  # fmt: skip
FEW, MANY = "bf16/forward/N=64", "bf16/forward/N=4096"


def cell(
    native: float | None = 0.25,
    *,
    op: str = "mean_argmax",
    rows: int = 4096,
    pass_: str = "forward",
    withheld: str = "",
    **others: float,
) -> list[Row]:
    """A cell's rows: ours, the forced one, and what else there is, by its name and time."""
    start = (op, f"K=4,N={rows},V=65536", "bf16", pass_)
    ratio = None if withheld else 2.0
    found = [Row(*start, "fastgrow", "ours", "ok", median_ms=0.01, correct=True, ratio=ratio)]
    if native is not None:
        found.append(
            Row(
                *start, NATIVE, "implementation", "ok",
                median_ms=native, correct=True, ratio=ratio, withheld=withheld,
            )
        )  # fmt: skip
    for name, ms in (others or {"eager": 0.5}).items():
        found.append(Row(*start, name, "library", "ok", median_ms=ms, correct=True))
    return found


def entry(native: float = 0.25, other: float = 0.5, name: str = "eager") -> dict[str, Any]:
    return {"native_ms": native, "other_ms": other, "other": name, "source": "0123"}


def times(*cells: list[Row]) -> dict[str, Any]:
    return native_times([row for rows in cells for row in rows], "0123")


def test_the_entry_has_the_best_of_the_others() -> None:
    found = times(cell(eager=0.5, compile=0.375), cell(rows=64, eager=0.125))
    expected = {MANY: entry(0.25, 0.375, "compile"), FEW: entry(0.25, 0.125)}
    assert found == {"mean_argmax": expected}
    assert times(cell(op="linear_cross_entropy")) == {}, "it has no such implementation"


def test_what_computed_something_else_is_no_rival() -> None:
    rows = cell(eager=0.5, sums=0.1, compile=0.375)
    wrong = [dataclasses.replace(r, correct=False) if r.contender == "sums" else r for r in rows]
    unchecked = [dataclasses.replace(r, correct=None) if r.role == "library" else r for r in wrong]
    assert times(wrong) == {"mean_argmax": {MANY: entry(0.25, 0.375, "compile")}}
    assert times([r for r in unchecked if r.contender != "sums"]) == times(wrong)


def test_another_implementation_of_ours_is_a_rival() -> None:
    forced = Row(*cell()[0].cell, "fastgrow chunked", "implementation", "ok", 0.3, correct=True)
    assert times([*cell(), forced]) == {"mean_argmax": {MANY: entry(0.25, 0.3, "fastgrow chunked")}}


def test_the_shape_in_which_it_does_worst_counts() -> None:
    worst = cell(0.75, rows=100)
    for cells in ([cell(), worst], [worst, cell()]):
        assert times(*cells) == {"mean_argmax": {MANY: entry(0.75)}}
    variant = cell(1.5, op="mean_argmax-variant", rows=200)
    assert times(variant, cell(), worst) == {"mean_argmax": {MANY: entry(1.5)}}


@pytest.mark.parametrize("bad", [cell(None, rows=100), cell(rows=100, withheld="not correct")])
def test_there_is_no_entry_where_one_shape_tells_nothing(bad: list[Row]) -> None:
    for cells in ([cell(), bad], [bad, cell()]):
        assert times(*cells, cell(rows=1)) == {"mean_argmax": {MANY: None, FEW: entry()}}


def test_passes_have_entries_of_their_own_and_gradients_alone_none() -> None:
    found = times(cell(), cell(0.375, pass_="full"), cell(9, pass_="backward"))
    assert found == {"mean_argmax": {MANY: entry(), "bf16/full/N=4096": entry(0.375)}}


def test_the_table_keeps_what_was_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    environment = {
        "device": "Fake GPU 9000", "capability": "9.0", "triton": "3.99", "extension": "0123"
    }  # fmt: skip
    shipped = {
        "mean_argmax": {FEW: entry(9), MANY: entry(9), "fp32/forward/N=64": entry(7)},
        "mean_top_k": {FEW: entry(7)},
        "mean_sample": {FEW: entry(9)},
    }
    path = tuned.path_of("Fake GPU 9000")
    path.write_text(json.dumps({"schema": 1, "entries": {}, "native": shipped}))
    record = Record(tmp_path / "record.jsonl")
    record.add({"kind": "machine", "key": "a", "environment": environment, "ceilings": {}})
    assert table_from(record, "a")["native"] == shipped
    rows = [*cell(rows=1), *cell(withheld="not correct"), *cell(None, op="mean_sample", rows=1)]
    table = table_from(record, "a", rows)
    assert table["native"] == {
        "mean_argmax": {FEW: entry(), "fp32/forward/N=64": entry(7)},
        "mean_top_k": {FEW: entry(7)},
    }
    assert table_of(table).native == table["native"]


def test_a_gpu_is_asked_for_it_though_it_is_not_chosen() -> None:
    for family in families(EXPERTS):
        case = Case(family, family.grids["gpu"][0], "bf16", "forward", "cuda")
        roles = {one.name: one.role for one in contenders(case, gpu.AGAINST)}
        assert roles[NATIVE] == "implementation", family.name


def test_a_gpu_is_asked_for_decoding_for_many_rows_and_for_gradients() -> None:
    for family in families(EXPERTS):
        shapes = family.grids["gpu"]
        for rows in (1, 4096):
            assert {"K": 4, "N": rows, "V": 65536} in shapes, family.name
        of_targets = "cross_entropy" in family.name or "gather" in family.name
        assert ("full" in family.passes) == of_targets

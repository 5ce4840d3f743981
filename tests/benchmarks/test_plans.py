"""The counted work of a GPU on experts' logits, and where reports and docs show it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import plans, show
from benchmarks.cases import families
from benchmarks.command import main
from benchmarks.native_times import NATIVE
from benchmarks.plans import counted, plan_text
from benchmarks.report import markdown
from benchmarks.results import Ceilings, Result, Row
from fastgrow.ops.core.launch_plan import Plan, launch_plan

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"K": 4, "N": 4096, "V": 65536}
LOGITS = 4 * 4096 * 65536 * 2


def row(op: str = "mean_cross_entropy", contender: str = NATIVE, **changes: str) -> Row:
    found = Row(
        op, "K=4,N=4096,V=65536", "bf16", "forward", contender, "implementation", "ok",
        median_ms=0.6, p20_ms=0.6, p80_ms=0.6, runs=5, correct=True, ratio=1.5,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def moved(name: str, pass_: str = "forward", **sizes: int) -> int:
    (family,) = families([name])
    return counted(family, SHAPE | sizes, "bf16", pass_).bytes


def test_few_rows_are_cut_until_the_chip_is_full() -> None:
    """Decoding with batch size 1: about two blocks for each of an H200's 132 multiprocessors."""
    assert launch_plan("mean_argmax", 1, 65536, 2) == Plan(32, 1, 256, 256, 1)
    assert launch_plan("mean_argmax", 2, 65536, 2).blocks(2) == 262
    assert launch_plan("mean_cross_entropy", 64, 65536, 2).blocks(64) == 1024
    # Many rows are enough, and short ones a warp's work.
    assert launch_plan("mean_cross_entropy", 8192, 65536, 2) == Plan(256, 1, 1, 65536, 8192)
    assert launch_plan("mean_cross_entropy", 8192, 256, 2) == Plan(256, 8, 1, 256, 1024)


def test_plans_go_by_the_operation() -> None:
    # A block's search for the largest is not to be about less, a part that is read again not more.
    assert launch_plan("mean_top_k", 1, 65536, 2) == Plan(256, 1, 32, 2048, 1)
    assert launch_plan("mean_top_k", 8192, 256, 2) == Plan(256, 1, 1, 256, 8192)
    assert launch_plan("mean_argmax", 8192, 65536, 2).parts == 1
    assert launch_plan("mean_sample", 8192, 65536, 2) == Plan(256, 1, 16, 4096, 1024)


@pytest.mark.parametrize("operation", ["mean_cross_entropy", "mean_top_k", "mean_sample"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_parts_are_whole_loads_that_cover_the_row(operation: str, itemsize: int) -> None:
    for rows in (1, 3, 100, 70_000):
        for columns in (1, 7, 255, 1024, 1025, 5003, 50_257, 65_536, 1_000_003):
            plan = launch_plan(operation, rows, columns, itemsize)
            assert plan.length * itemsize % 16 == 0
            assert (plan.parts - 1) * plan.length < columns <= plan.parts * plan.length
            assert plan.threads in (32, 64, 128, 256)
            assert plan.rows_per_block == 1 or (plan.rows_per_block, plan.parts) == (8, 1)
            assert 1 <= plan.at_a_time <= min(rows, 65_535)


def test_logits_results_gradients_and_parts_are_counted() -> None:
    result = LOGITS // 4
    parts = 2 * 4096 * 2 * 8
    assert moved("logit_mean") == moved("logit_mean-into") == LOGITS + result
    assert moved("mean_argmax") == LOGITS + 4096 * 8 + parts
    assert moved("mean_top_k") == LOGITS + 4096 * 40 * 12 + 40 * parts
    assert moved("mean_sample") == LOGITS + 4096 * 16 + 8 * parts + LOGITS // 16
    assert moved("mean_sample-cut") == LOGITS + 4096 * 16 + 40 * parts
    assert moved("probability_mean") == 2 * LOGITS + 2 * result + 4 * parts
    for name, times in (("mean_cross_entropy", 1), ("probability_mean_gather", 4)):
        assert moved(name) == LOGITS + 4096 * 16 + times * parts
        assert moved(name, "backward") == 2 * LOGITS + 4096 * 16
        assert moved(name, "full") == moved(name) + moved(name, "backward")


def test_the_page_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plans"]) == 0
    table = capsys.readouterr().out
    assert table == f"{plans.markdown()}\n"
    assert table in (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert {f"`{name}`" in table for name in plans.FAMILIES} == {True, False}, "one is left out"
    assert "`logit_mean-into`" not in table


COUNTED = "plan: 8,192 blocks, 2.1 GB, 0.54 ms at 4 TB/s"


def test_it_is_shown_next_to_the_times_of_a_gpu_only() -> None:
    assert plan_text(row()) == COUNTED
    rows = [row(contender="fastgrow"), row(), row(contender="eager")]
    assert show.case_table(rows, Ceilings(), on_gpu=True).splitlines()[-1] == (
        f"  fastgrow native: {COUNTED}"
    )
    assert "plan" not in show.case_table(rows, Ceilings())
    for kind, count in (("cuda", 1), ("cpu", 0), ("rehearsal", 0)):
        environment = {"kind": kind, "device": "Fake 9000"}
        text = markdown(Result("python -m benchmarks", environment, Ceilings(), rows), "origin")
        assert text.count(f"1.50×; {COUNTED} |") == count
        assert text.count("plan: ") == count


def test_what_has_no_plan_has_none() -> None:
    for other in (
        row(op="mlp"), row(contender="eager"), row(contender="fastgrow"), row(status="refused: no")
    ):  # fmt: skip
        assert plan_text(other) == ""


def test_small_numbers_have_units_of_theirs() -> None:
    (family,) = families(["mean_argmax"])
    texts = [str(counted(family, SHAPE | {"N": n}, "bf16", "forward")) for n in (1, 64, 256)]
    assert texts == [
        "256 blocks, 0.53 MB, 0.13 µs at 4 TB/s",
        "1,024 blocks, 34 MB, 8.4 µs at 4 TB/s",
        "4,096 blocks, 0.13 GB, 34 µs at 4 TB/s",
    ]

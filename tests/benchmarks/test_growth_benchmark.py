"""The growth benchmark runs and checks its claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.command import main
from benchmarks.growth.claims import Claim, run_claims, step_claims
from benchmarks.growth.models import Shape, counted_gain
from benchmarks.growth.runs import RunRow
from benchmarks.growth.steps import DEPTHS, StepRow


def test_the_command_writes_steps_runs_and_claims(tmp_path: Path, capsys) -> None:
    assert main(["growth", "--tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert len(result["steps"]) == 3 + 2 * len(DEPTHS) + 1
    assert all(row["seconds"][0] > 0 and row["peak_bytes"] > 0 for row in result["steps"])
    assert [row["same_bits"] for row in result["runs"]] == [True]
    peaks = [claim for claim in result["claims"] if "peak memory" in claim["text"]]
    assert len(peaks) == 2
    assert all(claim["held"] for claim in peaks)
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert str(tmp_path) not in text


def test_the_counted_gain_is_that_of_the_papers_arithmetic() -> None:
    shape = Shape(d=256, V=512, T=256)
    block, head = 24 * 256**2 + 2 * 256 * 256, 2 * 256 * 512
    assert (shape.block, shape.head) == (block, head)
    # Forward, backward and the gradients of the weights, but that of the block's input.
    active = 3 * block - 2 * 3 * 256 * 256 + 3 * head
    without = 24 * active + sum(range(24)) * block
    assert counted_gain(shape, 24, 4) == pytest.approx(without / (24 * active + 23 * block / 4))
    assert counted_gain(shape, 24, 4) == pytest.approx(4.24, abs=0.01)
    assert counted_gain(shape, 24, 1) < counted_gain(shape, 24, 4)


def steps(kept: float, recomputed: float, monolith: float, peak: int) -> list[StepRow]:
    rows = [
        StepRow("one block", [1.0, 2.0], 100),
        StepRow("a frozen block's forward pass", [0.1, 0.2], 100),
        StepRow("monolith of 9", [monolith, 2 * monolith], 100),
        StepRow("8 frozen, recomputed", [1.8, 3.6], 100),
    ]
    for n in DEPTHS:
        deep = peak if n == DEPTHS[-1] else 100
        whole = recomputed * (1 + 0.1 * n)
        rows.append(StepRow(f"{n} frozen, kept on disk", [kept, 2 * kept], deep))
        rows.append(StepRow(f"{n} frozen, recomputed", [whole, 2 * whole], deep))
    return rows


def test_each_claim_fails_where_its_number_is_out_of_bounds() -> None:
    assert all(claim.held for claim in step_claims(steps(1.05, 1.05, 3.0, 101)))
    for wrong, failing in (
        ((1.2, 1.05, 3.0, 101), 4),
        ((1.05, 1.2, 3.0, 101), 4),
        ((1.05, 1.05, 2.0, 101), 1),
        ((1.05, 1.05, 3.0, 110), 2),
    ):
        assert sum(not claim.held for claim in step_claims(steps(*wrong))) == failing


def run_row(gain: float, same_bits: bool = True) -> RunRow:
    return RunRow(24, 4, 512, 256, 256, 8, "auto", 1.0, gain, 1.0, gain, gain, 4.0, same_bits)


def test_a_run_is_judged_by_its_gain_and_its_bits() -> None:
    assert [claim.held for claim in run_claims([run_row(3.3)])] == [True, True, True]
    assert [claim.held for claim in run_claims([run_row(3.1)])] == [True, False, True]
    assert [claim.held for claim in run_claims([run_row(2.4)])] == [False, False, True]
    assert [claim.held for claim in run_claims([run_row(3.3, False)])] == [True, True, False]
    assert not Claim("", 1.2, 1.1).held

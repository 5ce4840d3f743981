"""Records are read as far as they exist and are valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgrow.report import Report
from fastgrow.report.inside.growth import add_growth, growth_charts, stage_table, validation_curve
from fastgrow.report.inside.records import RunRecords, flatten, format_value, number, read_records


def _rows(stage: str, first: int, bits: list[float]) -> list[dict]:
    return [
        {"step": i + 1, "global_step": first + i, "stage": stage, "loss": b / 2, "tokens": 100 * i
         + 100, "tokens_per_second": 50.0, "seconds": 2.0 * (i + 1),
         "validation_bits_per_character": b}
        for i, b in enumerate(bits)
    ]  # fmt: skip


@pytest.fixture
def records() -> RunRecords:
    stages = [
        {"stage": 1, "active_parameters": 10, "total_parameters": 30, "bits_at_start": 9.0},
        {"stage": 2, "active_parameters": 12, "total_parameters": 40, "bits_at_start": 7.5,
         "lora": {"rank": 8, "drift": 2e-7}, "trained": [1, 2], "later": True,
         "rank": None, "decision": {"reason": "no gain over the last three evaluations"}},
    ]  # fmt: skip
    rows = _rows("1/2", 1, [6.0, 5.0]) + _rows("2/2", 3, [4.0, 3.0])
    return RunRecords(Path("run"), {}, stages, rows)


def test_the_curve_jumps_where_blocks_are_inserted(records: RunRecords) -> None:
    points, boundaries = validation_curve(records)
    assert boundaries == [200]
    assert points == [(100, 6.0), (200, 5.0), (200, 7.5), (300, 4.0), (400, 3.0)]


def test_without_tokens_the_curve_counts_steps(records: RunRecords) -> None:
    for row in records.rows:
        del row["tokens"]
    assert validation_curve(records)[1] == [2]
    records.settings = {"train": {"batch_size": 4, "accumulate": 2, "seq_len": 8}}
    assert validation_curve(records)[1] == [128]


def test_a_chart_for_each_record(records: RunRecords) -> None:
    titles = [chart.markdown().partition(".")[0] for chart in growth_charts(records)]
    assert [title.partition(" (")[0] for title in titles] == [
        "Growth curve",
        "Training loss by stage",
        "Speed",
        "Parameters",
    ]
    bars = growth_charts(records)[-1].markdown()
    assert "1: 10, 20; 2: 12, 28" in bars


def test_unknown_fields_become_columns(records: RunRecords) -> None:
    table = stage_table(records)
    columns = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    assert columns["lora.rank"] == ("–", "8")
    assert columns["trained"] == ("–", "1, 2")
    assert columns["later"] == ("–", "True")
    assert "rank" not in columns
    assert columns["tokens/s"] == ("50", "50")
    # Drift has a separate table.
    assert not [name for name in table.header if "drift" in name]


def test_drift_and_reasons_are_shown(records: RunRecords) -> None:
    report = Report("t")
    add_growth(report, records)
    text = report.markdown()
    assert "| 2 | 2e-07 |" in text.partition("LoRA drift")[2]
    assert "- Stage 2, decision.reason: no gain over the last three evaluations" in text
    assert not [name for name in stage_table(records).header if "decision" in name]
    for stage in records.stages:
        stage["lora"] = {"drift": None}
    without = Report("t")
    add_growth(without, records)
    assert "LoRA drift" not in without.markdown()


def test_a_run_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    rows = _rows("1/3", 1, [6.0]) + _rows("2/3", 2, [5.0, 4.0])
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    records = read_records(tmp_path)
    assert [stage["stage"] for stage in records.stages] == [1, 2]
    assert records.stages[1]["bits"] == {"validation": 4.0}
    assert any("has not finished" in sentence for sentence in records.missing)


def test_numbers_are_checked() -> None:
    record = {
        "a": {"b": 2},
        "t": True,
        "n": float("nan"),
        "i": float("-inf"),
        "s": "1",
        "g": 10**400,
    }
    assert number(record, "a", "b") == 2.0
    for names in (("t",), ("n",), ("i",), ("s",), ("g",), ("x",), ("s", "t"), ("a",)):
        assert number(record, *names) is None


def test_records_are_formatted() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [{"e": 2, "f": None}]}) == {
        "a.b": 1,
        "a.c": {},
        "d.1": "e 2",
    }
    values = (None, True, 12345, 0.00012345, [], [1, "x"], [[1, 2], 3], {})
    assert [format_value(value) for value in values] == [
        "–", "True", "12,345", "0.0001234", "–", "1, x", "(1, 2), 3", "{}",
    ]  # fmt: skip

"""Result files: JSON and CSV have the same data, and an error names a damaged file."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from fake_time import FakeClock, Ticking

from benchmarks import machine as machines
from benchmarks import show
from benchmarks.case import Family, select
from benchmarks.machine import Machine
from benchmarks.measure import Budget, Settings
from benchmarks.report import report
from benchmarks.results import FIELDS, Result, load, save
from benchmarks.suite import run_suite
from fastgrow.errors import CheckpointError


@pytest.fixture
def result(family: Family, machine: Machine) -> Result:
    cases = select([family], device="cpu", grid="cpu", dtypes=["fp32"])
    settings = Settings(("implementation", "eager", "library"), 0.0, 2)
    return run_suite(cases, settings, machine, Budget(60, Ticking()), "python -m benchmarks")


def test_what_is_saved_is_loaded(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path)
    assert load(tmp_path / "results.json") == result


def test_csv_and_json_hold_the_same_rows(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path)
    tree = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(tree["rows"]) == 24
    for of_csv, of_json in zip(rows, tree["rows"], strict=True):
        assert list(of_csv) == list(of_json) == list(FIELDS)
        assert of_csv == {k: "" if v is None else str(v) for k, v in of_json.items()}


def test_the_file_says_where_and_how_it_was_measured(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path)
    tree = json.loads((tmp_path / "results.json").read_text())
    assert set(tree) == {"schema", "command", "environment", "ceilings", "rows", "notes"}
    assert {"device", "driver", "torch", "triton", "commit"} <= set(tree["environment"])
    assert tree["ceilings"] == {
        "copy_gb_per_s": 1000.0, "matmul_tflop_per_s": 500.0, "matmul_dtype": "bf16"
    }  # fmt: skip


def test_a_file_from_before_covered_runs_were_counted_is_loaded(
    result: Result, tmp_path: Path
) -> None:
    save(result, tmp_path)
    path = tmp_path / "results.json"
    tree = json.loads(path.read_text())
    for row in tree["rows"]:
        del row["covered"]
    path.write_text(json.dumps(tree))
    assert load(path) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(schema=99), "expected a result file of schema 1, got 99"),
        (lambda tree: tree["rows"][0].pop("ratio"), "not a result file"),
        (lambda tree: tree["rows"][0].update(median_ms="fast"), "median_ms is 'fast'"),
        (lambda tree: tree.pop("environment"), "not a result file"),
    ],
)
def test_another_file_is_refused(result: Result, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    save(result, tmp_path)
    path = tmp_path / "results.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_the_report_has_every_row_and_its_origin(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path)
    text = report([tmp_path / "results.json"])
    assert text.count("| **fastgrow** |") == 6
    assert text.count("| library |") == 6
    assert "Origin: `results.json`; Fake GPU 9000, driver 1.2" in text
    assert "Ceilings: copy 1000 GB/s, bf16 matmul 500 TFLOP/s, in the same run." in text
    assert "made by `python -m benchmarks`" in text
    assert str(tmp_path) not in text


def test_tables_tell_what_did_not_run(result: Result) -> None:
    refused = dataclasses.replace(
        result.rows[-1], median_ms=None, p20_ms=None, p80_ms=None, status="cannot run: too old"
    )
    table = show.case_table([*result.rows[:3], refused], result.ceilings)
    assert "library: cannot run: too old" in table
    assert "1.00×" in table


def test_both_tables_report_times_with_the_hosts_launches(result: Result, tmp_path: Path) -> None:
    counts = {"fastgrow": 1, "library": 2}
    rows = [
        dataclasses.replace(row, covered=counts.get(row.contender, row.runs)) for row in result.rows
    ]
    save(dataclasses.replace(result, rows=rows), tmp_path)
    text = report([tmp_path / "results.json"])
    assert text.count("1.00× (1.00–1.00); 1 of 2 times include the host's launch time |") == 6
    assert text.count("include the host's launch time") == 6
    table = show.case_table(rows[:4], result.ceilings)
    assert table.count("include the host's launch time") == 1
    assert "  fastgrow: 1 of 2 times include the host's launch time" in table


def test_a_picture_is_drawn(result: Result, tmp_path: Path) -> None:
    assert show.draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_ceilings_are_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(machines.COPY_BYTES, "cpu", 4000)
    monkeypatch.setitem(machines.MATMUL_SIZE, "cpu", 10)
    found = machines.measure_ceilings(torch.device("cpu"), FakeClock())
    # 4,000 bytes read and written, and 2 · 10³ operations, in a millisecond each.
    assert found.copy_gb_per_s == pytest.approx(8e-3)
    assert found.matmul_tflop_per_s == pytest.approx(2e-6)


@pytest.mark.parametrize(("load", "notes"), [(0.9, 1), (1.1, 2)])
def test_a_busy_machine_is_told(load: float, notes: int) -> None:
    found = machines.cpu_notes({"load": load, "cores": 2})
    assert len(found) == notes
    assert found[0] == machines.CPU_NOTE

"""`python -m benchmarks gpu`: its parts, what it writes, and what it withholds, on a fake GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import device_tests, gpu, tuning
from benchmarks.case import Family
from benchmarks.command import main
from benchmarks.machine import Machine
from benchmarks.results import Result, Row, load, save
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.kernels import tuned
from fastgrow.kernels.tuning_table import read_table

ENTRY = {"configuration": {"block": 32}, "median_ms": 1.0, "default_ms": 1.0}
ENTRIES = {"attention_forward": {"bf16/D=32": ENTRY}}


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, time_stands_still: None) -> dict[str, Any]:
    """What the tests on the device are taken to say; nothing is compiled or tuned."""
    said: dict[str, Any] = {"state": "passed", "passed": 12, "failures": []}
    monkeypatch.setattr(gpu, "run_gpu_tests", lambda seconds: dict(said))
    monkeypatch.setattr(tuning, "kernel_modules", lambda: ["kernels"])
    monkeypatch.setattr(tuning, "tune", lambda *a: {"entries": ENTRIES, "notes": []})
    monkeypatch.setattr(gpu, "AGAINST", ("implementation", "eager", "library"))
    return said


def run(machine: Machine, family: Family, out: Path) -> Result:
    return gpu.run_gpu(machine, out, [family], grid="tiny")


def ours(result: Result) -> list[Any]:
    return [row for row in result.rows if row.role == "ours"]


@pytest.mark.usefixtures("outcome")
def test_it_measures_tunes_and_writes(machine: Machine, family: Family, tmp_path: Path) -> None:
    result = run(machine, family, tmp_path)
    save(result, tmp_path)
    assert load(tmp_path / "results.json") == result
    assert [row.pass_ for row in ours(result)] == ["full", "backward", "forward"]
    assert all(row.dtype == "bf16" and row.ratio is not None for row in ours(result))
    assert result.ceilings.copy_gb_per_s == 1000.0
    assert "tests on the device: passed, 12 passed" in result.notes
    assert json.loads((tmp_path / "tuning.json").read_text()) == {
        "schema": 1, "device": "Fake GPU 9000", "capability": 90, "triton": "3.99",
        "entries": ENTRIES,
    }  # fmt: skip
    parts = sorted(path.stem for path in (tmp_path / "parts").iterdir())
    assert parts == ["correctness", "speed-triple", "tuning"]


@pytest.mark.usefixtures("outcome")
def test_a_second_run_measures_nothing(machine: Machine, family: Family, tmp_path: Path) -> None:
    first = run(machine, family, tmp_path)

    class Stopped:
        cache_bytes = 1

        def seconds(self, run: object, *others: object) -> float:
            raise AssertionError("measured again")

    assert run(dataclasses.replace(machine, clock=Stopped()), family, tmp_path) == first


def test_red_tests_withhold_the_ratios(
    machine: Machine, family: Family, tmp_path: Path, outcome: dict[str, Any]
) -> None:
    outcome |= {"state": "failed", "failures": ["tests/ops/test_triple.py::test_it"]}
    result = run(machine, family, tmp_path)
    assert {(row.ratio, row.withheld) for row in ours(result)} == {
        (None, "tests on the device failed")
    }


def test_red_tests_of_another_operation_withhold_nothing(machine: Machine, family: Family) -> None:
    rows = [
        Row(op, "N=1", "bf16", "full", "fastgrow", "ours", "ok", ratio=2.0)
        for op in ("mlp", "attention", "attention-decode")
    ]
    tests = {"state": "failed", "failures": ["tests/kernels/test_attention_kernels.py::test_it"]}
    kept = {row.op: row.ratio for row in gpu.withheld_where_red(rows, tests)}
    assert kept == {"mlp": 2.0, "attention": None, "attention-decode": None}
    unknown = {"state": "failed: not finished after 120 s"}
    assert {row.ratio for row in gpu.withheld_where_red(rows, unknown)} == {None}


INTERPRETED = "tests/kernels/interpreted"
MEASURED = [family.name for family in gpu.FAMILIES]


def withheld(*failures: str) -> set[str]:
    """The operations without a ratio, of all that are measured."""
    rows = [Row(op, "N=1", "bf16", "full", "ours", "ours", "ok", ratio=2.0) for op in MEASURED]
    found = gpu.withheld_where_red(rows, {"state": "failed", "failures": list(failures)})
    return {row.op for row in found if row.ratio is None}


@pytest.mark.parametrize(
    ("file", "bases"),
    [
        ("test_norm_kernels.py", {"layer_norm", "rms_norm"}),
        ("test_linear_lse_kernels.py", {"linear_cross_entropy", "linear_lse_gather", "linear_kl"}),
        ("test_lora_kernels.py", {"lora_linear"}),
        ("test_decode_kernels.py", {"attention"}),
        ("test_mlp_kernels.py", {"mlp"}),
        ("test_embedding_kernels.py", {"embedding"}),
    ],
)
def test_a_file_of_tests_withholds_what_it_is_about(file: str, bases: set[str]) -> None:
    expected = {op for op in MEASURED if op.split("-")[0] in {*bases, "growth_step"}}
    red_attention = f"{INTERPRETED}/test_attention_kernels.py::test_it"
    assert withheld(f"{INTERPRETED}/{file}::test_it[case]") == expected
    assert withheld(red_attention, f"{INTERPRETED}/{file}::test_it") == (
        expected | {"attention", "attention-decode"}
    )


def test_one_failure_that_names_nothing_withholds_everything() -> None:
    named = f"{INTERPRETED}/test_attention_kernels.py::test_it"
    assert withheld(named, f"{INTERPRETED}/test_kernels_in_models.py::test_it") == set(MEASURED)
    assert withheld(named, device_tests.BETWEEN_TESTS) == set(MEASURED)
    by_name = withheld(f"{INTERPRETED}/test_launches_on_gpu.py::test_it[embedding]")
    assert by_name == {"embedding", "embedding-bits", "embedding-codes", "growth_step"}


def test_the_files_that_stand_for_operations_exist() -> None:
    for file, bases in gpu.OPERATIONS.items():
        assert (device_tests.TESTS / "interpreted" / file).is_file()
        assert set(bases) <= set(MEASURED)


def test_every_red_test_counts_and_twenty_are_told(
    machine: Machine, family: Family, tmp_path: Path, outcome: dict[str, Any]
) -> None:
    others = [f"tests/kernels/test_lora_kernels.py::test_it[{i}]" for i in range(30)]
    lines = [{"test": name, "outcome": "failed"} for name in [*others, "tests/z.py::test_triple"]]
    outcome.clear()
    outcome |= device_tests.outcome([1], [lines], 120.0)
    result = run(machine, family, tmp_path)
    assert {row.ratio for row in ours(result)} == {None}
    (told,) = [note for note in result.notes if note.startswith("red: ")]
    assert told.count("::") == 20
    assert told.endswith(" and 11 more")


@pytest.mark.usefixtures("outcome")
def test_a_failed_part_is_told_and_tried_again(
    machine: Machine, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("ptxas is missing")

    with monkeypatch.context() as broken:
        broken.setattr(tuning, "tune", fails)
        result = run(machine, family, tmp_path)
    assert "tuning: failed: RuntimeError: ptxas is missing" in result.notes
    assert not (tmp_path / "tuning.json").exists()
    assert len(ours(result)) == 3
    run(machine, family, tmp_path)
    assert (tmp_path / "tuning.json").exists()


def test_every_operation_has_its_part_and_attention_comes_first(machine: Machine) -> None:
    parts = gpu.speeds(machine, gpu.FAMILIES, "gpu")
    assert {part.name for part in parts} == {f"speed-{f.name}" for f in gpu.FAMILIES}
    assert parts[0].name == "speed-attention"
    assert all(part.share > 0 for part in parts)
    assert gpu.CORRECTNESS_SECONDS + gpu.TUNING_SECONDS < gpu.TOTAL_SECONDS / 2


@pytest.mark.usefixtures("outcome")
def test_speeds_are_measured_with_the_table_just_made(
    machine: Machine, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run_cases(*arguments: object, **options: object) -> tuple[list[Row], list[str]]:
        seen.append(tuned.shipped("Fake GPU 9000").entries)
        return [Row("triple", "N=64", "bf16", "full", "fastgrow", "ours", "ok")], []

    monkeypatch.setattr(gpu, "run_cases", run_cases)
    run(machine, family, tmp_path)
    assert seen == [{"attention_forward": {"bf16/D=32": {"block": 32}}}]
    assert tuned.shipped("Fake GPU 9000").entries == {}
    run(machine, family, tmp_path)
    assert len(seen) == 1, "what is done stays done"
    # Tuned again, with another outcome: the speeds are not those of the table any more.
    (tmp_path / "parts" / "tuning.json").unlink()
    other = {"attention_forward": {"bf16/D=32": ENTRY | {"configuration": {"block": 64}}}}
    monkeypatch.setattr(tuning, "tune", lambda *a: {"entries": other, "notes": []})
    run(machine, family, tmp_path)
    assert seen[1:] == [{"attention_forward": {"bf16/D=32": {"block": 64}}}]


@pytest.mark.usefixtures("outcome")
def test_without_an_entry_the_shipped_table_serves(
    machine: Machine, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "tune", lambda *a: {"entries": {}, "notes": ["nothing compiled"]})

    def standing_in(*arguments: object) -> None:
        raise AssertionError("an empty table hides the shipped one")

    monkeypatch.setattr(tuned, "standing_in", standing_in)
    result = run(machine, family, tmp_path)
    assert "nothing compiled" in result.notes
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.usefixtures("outcome")
def test_an_operation_without_time_is_told_and_measured_later(
    machine: Machine, family: Family, tmp_path: Path
) -> None:
    (part,) = gpu.speeds(machine, [family], "tiny")
    with pytest.raises(RuntimeError, match="3 of 3 cases were not measured: no time left"):
        part.run(0.0)
    with_little = gpu.run_gpu(machine, tmp_path, [family], grid="tiny", seconds=0.5)
    assert "speed-triple: not run: the 0 s are used up" in with_little.notes
    assert len(ours(run(machine, family, tmp_path))) == 3


def test_the_table_is_shipped_where_launches_look_for_it(
    machine: Machine, family: Family, tmp_path: Path, outcome: dict[str, Any]
) -> None:
    save(run(machine, family, tmp_path), tmp_path)
    path = gpu.ship(tmp_path, tmp_path / "kernels")
    assert path == tmp_path / "kernels" / "fake-gpu-9000.json"
    assert path.read_bytes() == (tmp_path / "tuning.json").read_bytes()
    assert read_table(path).entries["attention_forward"]["bf16/D=32"] == {"block": 32}


def test_a_table_is_not_shipped_where_tests_failed(
    machine: Machine, family: Family, tmp_path: Path, outcome: dict[str, Any]
) -> None:
    outcome |= {"state": "failed", "failed": 1, "failures": ["tests/ops/test_triple.py::test_it"]}
    save(run(machine, family, tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="not shipped: tests on the device: failed, 12 passed"):
        gpu.ship(tmp_path, tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()
    with pytest.raises(CheckpointError, match=r"tuning\.json"):
        gpu.ship(tmp_path / "elsewhere", tmp_path / "kernels")


def test_without_a_gpu_it_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no CUDA GPU is at hand" in captured.err
    assert not (tmp_path / "out").exists()

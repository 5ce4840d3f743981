"""The record of a GPU machine: every line that was written whole is there after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.record import Record, key_of

KEY = key_of({"device": "Fake GPU", "driver": "1", "torch": "2", "triton": "3"})


def cell(name: str, **more: object) -> dict[str, object]:
    return {"kind": "cell", "key": KEY, "cell": name, **more}


def test_the_last_line_about_a_thing_counts(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "record.jsonl")
    for line in (cell("a", rows=[1]), cell("b", rows=[2]), cell("a", rows=[3])):
        record.add(line)
    for found in (record, Record(record.path)):
        assert [(line["cell"], line["rows"]) for line in found.of("cell", KEY)] == [
            ("a", [3]), ("b", [2])
        ]  # fmt: skip


def test_lines_of_another_machine_are_kept_and_not_used(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    record.add(cell("a") | {"key": "another"})
    record.add(cell("b"))
    assert [line["cell"] for line in record.of("cell", KEY)] == ["b"]
    assert [line["cell"] for line in Record(record.path).of("cell", "another")] == ["a"]


@pytest.mark.parametrize("rest", ['{"kind": "cell", "ke', '{"kind": "cell"', "\x00\x00", "{"])
def test_what_a_kill_cut_off_is_dropped(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "record.jsonl"
    Record(path).add(cell("a"))
    with path.open("a") as file:
        file.write(rest)
    record = Record(path)
    record.add(cell("b"))
    assert [line["cell"] for line in Record(path).of("cell", KEY)] == ["a", "b"]
    assert path.read_text().count("\n") == 2


def test_a_line_that_is_none_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text('not json\n[]\n{"kind": "unknown"}\n')
    record = Record(path)
    record.add(cell("a"))
    assert [line["cell"] for line in Record(path).of("cell", KEY)] == ["a"]

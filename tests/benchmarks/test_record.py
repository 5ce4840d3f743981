"""The record of a GPU machine: every line that was written completely survives a kill."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from benchmarks.record import Record, key_of, open_alone
from fastgrow.errors import ConfigError

KEY = key_of({"device": "Fake GPU", "driver": "1", "torch": "2", "triton": "3"})


def cell(name: str, **more: object) -> dict[str, object]:
    whole = {"kind": "cell", "key": KEY, "code": "a digest", "cell": name}
    return whole | {"launch": {}, "rows": [], **more}


def test_the_last_line_about_a_thing_counts(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "record.jsonl")
    for line in (
        cell("a", launch={"n": 1}),
        cell("b", launch={"n": 2}),
        cell("a", launch={"n": 3}),
    ):
        record.add(line)
    for found in (record, Record(record.path)):
        assert [(line["cell"], line["launch"]["n"]) for line in found.of("cell", KEY)] == [
            ("a", 3), ("b", 2)
        ]  # fmt: skip


def test_lines_of_another_machine_are_kept_and_not_used(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    record.add(cell("a") | {"key": "another"})
    record.add(cell("b"))
    assert [line["cell"] for line in record.of("cell", KEY)] == ["b"]
    assert [line["cell"] for line in Record(record.path).of("cell", "another")] == ["a"]


def test_hosts_with_another_patch_of_the_driver_are_one_machine() -> None:
    drivers = ("580.159.03", "580.159.04", "575.57.08")
    keys = [key_of({"device": "Fake GPU", "driver": driver}) for driver in drivers]
    assert keys[0] == keys[1] != keys[2]


def test_each_candidate_has_faults_of_its_own(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    of_bucket = {"kind": "fault", "key": KEY, "kernel": "k", "bucket": "b", "source": "s"}
    for configuration in ({"num_warps": 4}, None, {"num_warps": 8}, {"num_warps": 4}):
        record.add({**of_bucket, "configuration": configuration, "why": "it died"})
    for damage in ({"configuration": "4 warps"}, {"why": None}):
        record.add({**of_bucket, "configuration": None, "why": "it died", **damage})
    read = Record(record.path)
    found = [line["configuration"] for line in read.of("fault", KEY)]
    assert found == [{"num_warps": 4}, None, {"num_warps": 8}]
    assert read.unused == 2


@pytest.mark.parametrize("rest", ['{"kind": "cell", "ke', '{"kind": "cell"', "\x00\x00", "{"])
def test_what_a_kill_cut_off_is_overwritten(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "record.jsonl"
    Record(path).add(cell("a"))
    with path.open("a") as file:
        file.write(rest)
    before = path.read_bytes()
    record = Record(path)
    assert path.read_bytes() == before, "reading it changed it"
    record.add(cell("b"))
    assert [line["cell"] for line in Record(path).of("cell", KEY)] == ["a", "b"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path: Path) -> None:
    """An editor, or a copy through a terminal, may remove the last line end."""
    path = tmp_path / "record.jsonl"
    path.write_text(json.dumps(cell("a")))
    Record(path).add(cell("b"))
    assert [line["cell"] for line in Record(path).of("cell", KEY)] == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        "not json", "[]", '{"kind": "unknown"}', '{"kind": []}',
        json.dumps({k: v for k, v in cell("b").items() if k != "code"}),
        json.dumps(cell("b", rows=[{"op": "of an older version"}])),
        json.dumps(cell("b", launch=None)),
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_passed_over_and_counted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(f"{line}\n\n")
    Record(path).add(cell("a"))
    record = Record(path)
    assert [line["cell"] for line in record.of("cell", KEY)] == ["a"]
    assert record.unused == 1


def test_a_full_disk_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "record.jsonl")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    record.add(cell("a"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left.*record\.jsonl"):
            record.add(cell("b"))
    # Half of the line has come to the disk.
    os.truncate(record.path, record.path.stat().st_size - 10)
    record.add(cell("c"))
    assert [json.loads(line)["cell"] for line in record.path.open()] == ["a", "c"]


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    with open_alone(path) as record:
        record.add(cell("a"))
        with (
            pytest.raises(ConfigError, match="another run is writing to this folder"),
            open_alone(path),
        ):
            pass
    with open_alone(path) as again:
        assert len(again.of("cell", KEY)) == 1
    with pytest.raises(ConfigError, match="expected a folder"), open_alone(path / "record.jsonl"):
        pass

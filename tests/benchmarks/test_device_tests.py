"""The tests on a device: distributed, reported at once, and continued after a process dies."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import device_tests
from benchmarks.device_tests import BETWEEN_TESTS, Shard, files_of, outcome, run_gpu_tests

TESTS = """
import os, signal, time
import pytest

pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(5))
def test_many(i):
    pass

@pytest.mark.slow
def test_slow():
    assert False

@pytest.mark.skip
def test_skipped():
    pass
"""
# Each test leaves a line where it runs, so that one which runs twice shows.
TRACE = """    with open(__file__ + ".trace", "a") as file:
        file.write(f"{os.getpid()} {i}\\n")
    if i == 2:
        os.kill(os.getpid(), signal.SIGSEGV)"""


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_device.py").write_text(TESTS)
    return tmp_path / "tests"


class Heard:
    """The outcomes that a run reported, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str]] = []

    def __call__(self, test: str, outcome: str, why: str) -> None:
        self.all.append((test.rpartition("::")[2], outcome, why))


def test_every_test_runs_once_also_where_one_kills_its_process(
    tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    file = tests / "test_device.py"
    file.write_text(TESTS.replace("    pass", TRACE, 1))
    heard = Heard()
    assert run_gpu_tests(10_000, tests, on_outcome=heard) == ""
    trace = file.with_name("test_device.py.trace").read_text()
    processes, ran = zip(*(line.split() for line in trace.splitlines()), strict=True)
    assert list(ran) == list("01234")
    assert len(set(processes)) == 2
    expected = [(f"test_many[{i}]", "passed", "") for i in range(5)]
    expected[2] = ("test_many[2]", "error", "its process died of SIGSEGV")
    assert heard.all == [*expected, ("test_skipped", "skipped", "")]


@pytest.mark.slow
def test_what_is_known_or_not_chosen_is_left_out(
    tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    names: list[str] = []
    run_gpu_tests(10_000, tests, only="many", on_outcome=lambda test, *_: names.append(test))
    assert [name.rpartition("::")[2] for name in names] == [f"test_many[{i}]" for i in range(5)]
    again = Heard()
    known = [name for name in names if "[1]" not in name]
    assert run_gpu_tests(10_000, tests, only="many", leave_out=known, on_outcome=again) == ""
    assert again.all == [("test_many[1]", "passed", "")]
    # No expression, as pytest's own option would take it.
    assert run_gpu_tests(10_000, tests, only="many[3", on_outcome=again) == ""
    assert again.all[1:] == [("test_many[3]", "passed", "")]
    assert (
        run_gpu_tests(10_000, tests, only="N=3 of") == "skipped: no test has 'N=3 of' in its name"
    )


def test_what_is_running_when_the_time_is_over_is_killed(
    tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    (tests / "test_device.py").write_text(TESTS.replace("    pass", "    time.sleep(600)"))
    assert run_gpu_tests(2, tests).startswith("unfinished after 2 s")


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        run_gpu_tests(60, tmp_path / "nowhere")
        == "skipped: the folder has no tests with the mark gpu"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_gpu_tests(60) == "skipped: pytest is not installed"


def test_the_files_are_those_with_the_mark(tmp_path: Path) -> None:
    for name, text in {
        "a/test_marked.py": "pytestmark = pytest.mark.gpu",
        "a/test_other.py": "",
        "b/conftest.py": "item.add_marker(pytest.mark.gpu)",
        "b/test_all.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [path.name for path in files_of(tmp_path)] == ["b", "test_marked.py"]
    own = {path.name for path in files_of(device_tests.TESTS)}
    assert {"interpreted", "gpu", "test_experts_on_gpu.py"} <= own


# One process's share, with a fake process.


class Process:
    """Writes the lines of each start and ends with its status."""

    def __init__(self, path: Path, *starts: tuple[int | None, list[dict[str, Any]]]) -> None:
        self.path, self.starts, self.status = path, list(starts), None

    def __call__(self, name: str, outcomes: Path) -> Any:
        self.status, lines = self.starts.pop(0)
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return self

    def poll(self) -> int | None:
        return self.status


def lines(*names: str, outcome: str = "passed") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in names:
        found += [{"started": name}, {"test": name, "outcome": outcome, "why": ""}]
        found += [{"finished": name}]
    return found


def shard(tmp_path: Path, *starts: tuple[int | None, list[dict[str, Any]]]) -> tuple[Shard, Heard]:
    path = tmp_path / "outcomes.jsonl"
    found, heard = Shard("0/1", path, Process(path, *starts)), Heard()
    while found.is_running and found.process.poll() is not None:
        found.turn(heard)
    found.turn(heard)
    return found, heard


COLLECTED = {"collected": 3}


def test_a_process_that_dies_names_the_test_it_was_at_and_is_followed(tmp_path: Path) -> None:
    first = [COLLECTED, *lines("a"), {"started": "b"}]
    found, heard = shard(tmp_path, (-11, first), (0, [{"collected": 1}, *lines("c")]))
    died = ("b", "error", "its process died of SIGSEGV")
    assert heard.all == [("a", "passed", ""), died, ("c", "passed", "")]
    assert found.left() == 0


def test_a_lost_device_is_told_once_and_by_the_test_that_lost_it(tmp_path: Path) -> None:
    lost = [COLLECTED, {"started": "a"}, {"test": "a", "outcome": "passed", "why": ""}]
    lost += [{"test": "a", "outcome": "error", "why": "an illegal memory access"}]
    _, heard = shard(tmp_path, (70, lost), (0, [{"collected": 2}, *lines("b", "c")]))
    assert heard.all[:2] == [("a", "passed", ""), ("a", "error", "an illegal memory access")]
    assert [name for name, *_ in heard.all] == ["a", "a", "b", "c"]


def test_a_process_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    found, heard = shard(tmp_path, *[(3, [])] * device_tests.MOST_DEATHS)
    assert heard.all == [(BETWEEN_TESTS, "error", "its process ended with status 3")]
    assert not found.is_running


def test_dying_after_the_last_test_is_no_failure(tmp_path: Path) -> None:
    found, heard = shard(tmp_path, (-11, [COLLECTED, *lines("a", "b", "c")]))
    assert not found.is_running
    assert {how for _, how, _ in heard.all} == {"passed"}


def test_one_result_of_all() -> None:
    assert outcome({"a": "passed", "b": "passed", "c": "skipped"}, "") == {
        "state": "passed", "passed": 2, "skipped": 1, "failures": []
    }  # fmt: skip
    assert outcome({"a": "passed", "z": "failed", "b": "error"}, "unfinished") == {
        "state": "failed", "passed": 1, "failed": 1, "error": 1, "failures": ["b", "z"]
    }  # fmt: skip
    assert outcome({"a": "passed"}, "unfinished after 3 s")["state"] == "unfinished after 3 s"
    for nothing in ({}, {"a": "skipped"}):
        assert outcome(nothing, "")["state"] == "skipped: no test of the mark gpu ran"
    assert len(outcome({f"t{i}": "failed" for i in range(50)}, "")["failures"]) == 50

"""The kernels' tests on a device: shared out, counted, and told apart from a process that died."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks import device_tests

TESTS = """
import os, time
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
        file.write(f"{os.getpid()} {i}\\n")"""


def ends(**by_test: str) -> list[dict[str, Any]]:
    """What a process writes of tests that ended so."""
    lines: list[dict[str, Any]] = [{"collected": len(by_test)}]
    for name, outcome in by_test.items():
        lines += [{"started": name}, {"test": name, "outcome": outcome}]
    return lines


def outcome(*processes: tuple[int | None, list[dict[str, Any]]]) -> dict[str, Any]:
    statuses, lines = zip(*processes, strict=True)
    return device_tests.outcome(statuses, lines, 120.0)


def test_processes_are_added_up() -> None:
    found = outcome((0, ends(a="passed", b="passed")), (0, ends(c="skipped")))
    assert found == {"state": "passed", "passed": 2, "skipped": 1, "failures": []}
    assert outcome((1, ends(a="passed", b="failed")), (0, ends(c="passed"))) == {
        "state": "failed", "passed": 2, "failed": 1, "failures": ["b"]
    }  # fmt: skip


def test_nothing_that_ran_is_not_passed() -> None:
    expected = "skipped: no test of the mark gpu ran"
    assert outcome((5, ends()))["state"] == expected
    assert outcome((0, ends(a="skipped")))["state"] == expected


def test_a_test_that_fails_twice_is_one() -> None:
    twice = [*ends(a="failed"), {"test": "a", "outcome": "error"}]
    assert outcome((1, twice)) == {"state": "failed", "failed": 1, "failures": ["a"]}
    # Every process fails to collect a broken file.
    broken = [{"test": "tests/x.py", "outcome": "error"}, {"collected": 0}]
    found = outcome((1, broken), (1, broken))
    assert found == {"state": "failed", "error": 1, "failures": ["tests/x.py"]}


def test_a_process_that_dies_names_the_test_it_was_at() -> None:
    found = outcome((-11, [*ends(a="passed"), {"started": "b"}]), (0, ends(c="passed")))
    assert found["state"] == "failed: a process of tests ended with status -11"
    assert found["failures"] == ["b"]
    assert outcome((3, []))["state"].startswith("failed")
    # Of what it was to run next nothing is known.
    for written in ([], ends(a="passed")):
        assert outcome((3, written), (1, ends(z="failed")))["failures"] == [
            device_tests.BETWEEN_TESTS, "z"
        ]  # fmt: skip


def test_no_failure_is_kept_back() -> None:
    found = outcome((1, ends(**{f"t{i:02}": "failed" for i in range(50)})))
    assert len(found["failures"]) == 50


def test_time_that_is_over_is_no_failure() -> None:
    late: list[dict[str, Any]] = [{"collected": 4}, *ends(a="passed")[1:], {"started": "b"}]
    found = outcome((0, ends(c="passed")), (None, late))
    assert found["state"] == "unfinished after 120 s, 3 tests are left"
    assert found["failures"] == []
    assert outcome((None, late), (1, ends(x="failed")))["state"] == "failed"


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_device.py").write_text(TESTS)
    return tmp_path / "tests"


def test_every_test_runs_once_in_one_of_the_processes(
    tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_tests, "MOST_PROCESSES", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    file = tests / "test_device.py"
    file.write_text(TESTS.replace("    pass", TRACE, 1))
    found = device_tests.run_gpu_tests(10_000, tests)
    assert found == {"state": "passed", "passed": 5, "skipped": 1, "failures": []}
    trace = file.with_name("test_device.py.trace").read_text()
    processes, ran = zip(*(line.split() for line in trace.splitlines()), strict=True)
    assert sorted(ran) == list("01234")
    assert len(set(processes)) == 2


def test_what_is_running_when_the_time_is_over_is_killed(
    tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    (tests / "test_device.py").write_text(TESTS.replace("    pass", "    time.sleep(600)"))
    assert device_tests.run_gpu_tests(3, tests)["state"].startswith("unfinished after 3 s")


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = device_tests.run_gpu_tests(60, tmp_path / "nowhere")
    assert found == {"state": "skipped: the tests are not here", "failures": []}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert device_tests.run_gpu_tests(60)["state"] == "skipped: pytest is not installed"

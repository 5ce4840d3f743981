"""Run the tests on the device, in as many processes as there are cores.

Most of their time is spent in the compiler, which uses one core per process.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.processes import bound, status_text

TESTS = ROOT / "tests"
MARK = "mark.gpu"
SMOKE = "gpu_smoke"  # one test of each kernel and direction
ALL = "gpu and not slow"
MOST_PROCESSES = 16  # each takes some of the GPU's memory
MOST_DEATHS = 5  # times that one process may die before its remaining tests are skipped
SHOWN_OF_A_LOG = 20_000  # characters of a log that are printed
BETWEEN_TESTS = "a process between its tests"
COUNTED = ("passed", "failed", "skipped", "error")
RED = ("failed", "error")
# pytest's exit statuses: all passed, some failed, none selected.
KNOWN_STATUS = (0, 1, 5)

# Called with a test, its outcome and, if it failed, the reason.
OnOutcome = Callable[[str, str, str], None]


def run_gpu_tests(
    seconds: float,
    tests: Path = TESTS,
    *,
    mark: str = ALL,
    only: str = "",
    leave_out: Collection[str] = (),
    on_outcome: OnOutcome = lambda test, outcome, why: None,
) -> str:
    """Run the tests of a mark for at most `seconds`.

    Args:
        seconds: time limit.
        tests: folder of the tests.
        mark: mark expression that selects tests.
        only: substring of the names of the tests to run.
        leave_out: names of tests that need not run again.
        on_outcome: called with each test as soon as it has ended: `passed`, `failed`, `skipped`, or
            `error`, which includes a test during which a process died; if a process died between
            two tests, the name is `BETWEEN_TESTS`.

    Returns:
        An empty string, or why not every test has run.
    """
    if importlib.util.find_spec("pytest") is None:
        return "skipped: pytest is not installed"
    files = files_of(tests)
    if not files:
        return "skipped: the folder has no tests with the mark gpu"
    end = time.monotonic() + seconds
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "leave-out"
        known.write_text("\n".join(leave_out), encoding="utf-8")
        start = functools.partial(_start, files, mark, only, known)
        shards = [Shard(f"{i}/{count}", Path(folder) / f"{i}.jsonl", start) for i in range(count)]
        try:
            while time.monotonic() < end:
                # `sum` polls every process, where `any` would stop at the first.
                if not sum(shard.turn(on_outcome) for shard in shards):
                    break
                time.sleep(0.05)
        finally:
            for shard in shards:
                shard.stop()
                # Read what the process wrote since the last poll.
                shard.read(on_outcome)
                shard.print_log_where_red()
    if only and not leave_out and not any(shard.is_running or shard.collected for shard in shards):
        return f"skipped: no test has {only!r} in its name"
    left = sum(shard.left() for shard in shards)
    if any(shard.is_running for shard in shards):
        return f"unfinished after {seconds:.0f} s" + (f", {left} tests not run" if left else "")
    return f"{left} tests not run: their process died {MOST_DEATHS} times" if left else ""


def files_of(tests: Path) -> list[Path]:
    """Return the test files that have the mark, and the folders whose conftest.py sets it."""
    folders = [path.parent for path in sorted(tests.rglob("conftest.py")) if _has_mark(path)]
    files = [path for path in sorted(tests.rglob("test_*.py")) if _has_mark(path)]
    return [*folders, *(path for path in files if path.parent not in folders)]


def _has_mark(path: Path) -> bool:
    return MARK in path.read_text(encoding="utf-8")


def _start(
    files: Iterable[Path], mark: str, only: str, leave_out: Path, shard: str, outcomes: Path
) -> subprocess.Popen[bytes]:
    # The project's pytest options name plugins that a plain image does not have.
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "benchmarks.shard"]
    # As one word: pytest would take the value of an option that it has not loaded yet for a path.
    chosen = ["-m", mark, f"--only={only}", "--continue-on-collection-errors", "--tb=short"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", *options, *chosen),
            *("--shard", shard, "--outcomes", str(outcomes), "--leave-out", str(leave_out)),
            *map(str, files),
        ],
        cwd=ROOT,
        # Failures are read from this log.
        stdout=outcomes.with_suffix(".log").open("ab"),
        stderr=subprocess.STDOUT,
        **bound(),
    )


@dataclass
class Shard:
    """A share of the tests, run in one process and, if that one dies, in another."""

    name: str
    outcomes: Path
    start: Callable[[str, Path], subprocess.Popen[bytes]]
    deaths: int = 0
    collected: int = 0
    ended: dict[str, str] = field(default_factory=dict)
    at: str | None = None
    is_running: bool = True
    _read: int = 0

    def __post_init__(self) -> None:
        self.process = self.start(self.name, self.outcomes)

    def turn(self, on_outcome: OnOutcome) -> bool:
        """Report new outcomes; return whether there are more to wait for."""
        if not self.is_running:
            return False
        status = self.process.poll()
        self.read(on_outcome)
        if status is None:
            return True
        if status in KNOWN_STATUS:
            self.is_running = False
        else:
            self._died(status, on_outcome)
        return self.is_running

    def _died(self, status: int, on_outcome: OnOutcome) -> None:
        self.deaths += 1
        at = self.at or BETWEEN_TESTS
        print(f"tests, process {self.name}: {status_text(status)} at {at}", flush=True)
        if self.at is None and self.collected and not self.left():
            # All tests had ended: the process died during Python's shutdown.
            self.is_running = False
            return
        self._end(at, "error", f"its process {status_text(status)}", on_outcome)
        self.at = None
        self.is_running = self.deaths < MOST_DEATHS
        if self.is_running:
            self.process = self.start(self.name, self.outcomes)

    def read(self, on_outcome: OnOutcome) -> None:
        lines = list(read_lines(self.outcomes))
        for line in lines[self._read :]:
            if "collected" in line:
                # A restarted process does not collect the tests that have ended before.
                self.collected = max(self.collected, line["collected"] + len(self.ended))
            elif "started" in line:
                self.at = line["started"]
            elif "finished" in line:
                self.at = None
            elif "outcome" in line:
                self._end(line["test"], line["outcome"], line["why"], on_outcome)
        self._read = len(lines)

    def _end(self, test: str, outcome: str, why: str, on_outcome: OnOutcome) -> None:
        # A test may pass and still fail at teardown or when the device is synchronised.
        if test not in self.ended or (outcome in RED and self.ended[test] not in RED):
            self.ended[test] = outcome
            on_outcome(test, outcome, why)

    def left(self) -> int:
        return max(0, self.collected - len(self.ended))

    def print_log_where_red(self) -> None:
        path = self.outcomes.with_suffix(".log")
        if path.is_file() and any(outcome in RED for outcome in self.ended.values()):
            text = path.read_text(encoding="utf-8", errors="replace")
            print(f"tests, process {self.name}:\n{text[-SHOWN_OF_A_LOG:]}", flush=True)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def read_lines(path: Path | None) -> Iterator[dict[str, Any]]:
    """Read the lines that a process wrote; ignore a line that was cut off when it was killed."""
    if path is None or not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def outcome(by_test: dict[str, str], unfinished: str) -> dict[str, Any]:
    """Summarise the outcomes of all tests.

    Returns:
        `state`, which begins with `passed`, `failed`, `unfinished` or `skipped`; counts by outcome;
        `failures`, the names of failed tests.
    """
    counts = Counter(by_test.values())
    failures = sorted(name for name, how in by_test.items() if how in RED)
    if failures:
        state = "failed"
    elif unfinished:
        state = unfinished
    else:
        state = "passed" if counts["passed"] else "skipped: no test of the mark gpu ran"
    known = {word: counts[word] for word in COUNTED if counts[word]}
    return {"state": state, **known, "failures": failures}

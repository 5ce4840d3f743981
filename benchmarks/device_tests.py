"""The kernels' tests on the device: those marked `gpu` and not `slow`, in several processes.

Most of their time is the compiler's, which uses one core a process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

TESTS = ROOT / "tests" / "kernels"
MOST_PROCESSES = 8  # each takes some of the GPU's memory
BETWEEN_TESTS = "a process between its tests"
COUNTED = ("passed", "failed", "skipped", "error")
# Of pytest: all passed, some failed, none selected.
KNOWN_STATUS = (0, 1, 5)


def run_gpu_tests(seconds: float, tests: Path = TESTS) -> dict[str, Any]:
    """Run them for at most so long.

    Returns:
        `state`, which begins with `passed`, `failed`, `unfinished` or `skipped`; counts by outcome;
        `failures`, the names of tests; where a process died between two, `BETWEEN_TESTS`.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"state": "skipped: pytest is not installed", "failures": []}
    if not tests.is_dir():
        return {"state": "skipped: the tests are not here", "failures": []}
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jsonl" for index in range(count)]
        processes = [
            subprocess.Popen(
                _command(tests, f"{index}/{count}", file),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for index, file in enumerate(files)
        ]
        try:
            statuses = _statuses(processes, time.monotonic() + seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        lines = [_lines(file) for file in files]
    return outcome(statuses, lines, seconds)


def _command(tests: Path, shard: str, file: Path) -> list[str]:
    # The project's options name plugins that a plain image lacks.
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "benchmarks.shard"]
    chosen = ["-m", "gpu and not slow", "--continue-on-collection-errors", "--tb=no"]
    return [
        *(sys.executable, "-m", "pytest", *options, *chosen),
        *("--shard", shard, "--outcomes", str(file), str(tests)),
    ]


def _statuses(processes: Iterable[subprocess.Popen[bytes]], end: float) -> list[int | None]:
    """Exit statuses; None for a process that is not finished when the time is over."""
    statuses: list[int | None] = []
    for process in processes:
        try:
            statuses.append(process.wait(max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            statuses.append(None)
    return statuses


def _lines(file: Path) -> list[dict[str, Any]]:
    """What a process wrote; the last line may be cut off where it was killed."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def outcome(
    statuses: Iterable[int | None], lines: Iterable[list[dict[str, Any]]], seconds: float
) -> dict[str, Any]:
    """One result of all processes."""
    by_test: dict[str, str] = {}
    crashes: list[int] = []
    left, is_unfinished = 0, False
    for status, written in zip(statuses, lines, strict=True):
        # The first outcome is the one that tells: a test may fail again when it is taken down.
        ends = {line["test"]: line["outcome"] for line in reversed(written) if "outcome" in line}
        by_test |= ends
        if status is None:
            is_unfinished = True
            left += max(0, sum(line.get("collected", 0) for line in written) - len(ends))
        elif status not in KNOWN_STATUS:
            crashes.append(status)
            # What it was at is what it fell over.
            names = [line["started"] for line in written if "started" in line]
            unfinished = [name for name in names if name not in ends]
            by_test |= dict.fromkeys(unfinished or [BETWEEN_TESTS], "error")
    counts = Counter(by_test.values())
    failures = sorted(name for name, how in by_test.items() if how in ("failed", "error"))
    if crashes:
        state = f"failed: a process of tests ended with status {crashes[0]}"
    elif failures:
        state = "failed"
    elif is_unfinished:
        state = f"unfinished after {seconds:.0f} s" + (f", {left} tests are left" if left else "")
    else:
        state = "passed" if counts["passed"] else "skipped: no test of the mark gpu ran"
    known = {word: counts[word] for word in COUNTED if counts[word]}
    return {"state": state, **known, "failures": failures}

"""A pytest plugin that runs every n-th test, and writes each outcome to a file immediately.

    python -m pytest -p benchmarks.shard --shard 2/8 --outcomes FILE --leave-out FILE …

A plain CUDA image may have pytest, but no plugins that distribute tests. The outcomes of a process
that was killed are in the file; started again with the same file, it continues after the test at
which it was killed. A test that loses the device (by an illegal access) ends the process, because
all later tests would fail.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks.device_tests import read_lines
from benchmarks.processes import DEVICE_LOST, die_with_parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="INDEX/COUNT of the tests to run")
    parser.addoption("--outcomes", type=Path, help="file to append the outcomes to, as JSON lines")
    parser.addoption("--only", default="", help="substring of the names of the tests to run")
    parser.addoption(
        "--leave-out", type=Path, help="file with names of tests to skip, one per line"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.outcomes is not None:
        die_with_parent()
        config.pluginmanager.register(_Outcomes(config.option.outcomes))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out, outcomes = config.option.leave_out, config.option.outcomes
    names = set(left_out.read_text(encoding="utf-8").splitlines()) if left_out else set()
    index, count = map(int, config.option.shard.split("/"))
    chosen = [i for i in items if i.nodeid not in names and config.option.only in i.nodeid]
    mine = mixed(chosen)[index::count]
    started = {line["started"] for line in read_lines(outcomes) if "started" in line}
    items[:] = [item for item in mine if item.nodeid not in started]


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """Order tests as the first of each file, the second of each, …, so that all files get time."""
    files = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.path)]
    rounds = itertools.zip_longest(*files)
    return [item for round_ in rounds for item in round_ if item is not None]


class _Outcomes:
    """Writes the outcomes to a file.

    Lines are `{"collected": n}`, `{"started": test}`, `{"finished": test}` and
    `{"test": test, "outcome": …, "why": …}`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **line: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="error", why=last_line(report.longreprtext))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that passes may still fail at teardown.
        if report.when == "call" or report.outcome != "passed":
            broken = report.failed and report.when != "call"
            outcome = "error" if broken else report.outcome
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message.partition("\n")[0] if crash else last_line(report.longreprtext)
            why = text[:300] if report.failed else ""
            self._write(test=report.nodeid, outcome=outcome, why=why)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except Exception as error:
                # Reported for the test that launched the work, even if that test itself passed.
                self._write(test=nodeid, outcome="error", why=last_line(str(error)))
                os._exit(DEVICE_LOST)
        self._write(finished=nodeid)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]

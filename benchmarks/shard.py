"""A plugin for pytest: run every n-th test, and write down each outcome at once.

    python -m pytest -p benchmarks.shard --shard 2/8 --outcomes FILE --leave-out FILE …

A plain CUDA image has pytest at best, without plugins that share tests out; and what a killed
process has found is in the file. Started again with the same file it goes on after the test that it
was at. A test that loses the device (an illegal access) ends the process: every test after it would
fail.
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
    parser.addoption("--outcomes", type=Path, help="file of one JSON object a line")
    parser.addoption("--only", default="", help="a part of the names of tests to be run")
    parser.addoption("--leave-out", type=Path, help="file of tests, one a line, not to be run")


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
    begun = {line["started"] for line in read_lines(outcomes) if "started" in line}
    items[:] = [item for item in mine if item.nodeid not in begun]


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """The first test of each file, then the second of each, …: no one file is cut off."""
    files = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.path)]
    rounds = itertools.zip_longest(*files)
    return [item for round_ in rounds for item in round_ if item is not None]


class _Outcomes:
    """Lines `{"collected": n}`, `{"started": test}`, `{"test": test, "outcome": …, "why": …}` and
    `{"finished": test}`.
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
        # A test that passes its call may still fail when it is taken down.
        if report.when == "call" or report.outcome != "passed":
            broken = report.failed and report.when != "call"
            outcome = "error" if broken else report.outcome
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message.partition("\n")[0] if crash else last_line(report.longreprtext)
            why = said[:300] if report.failed else ""
            self._write(test=report.nodeid, outcome=outcome, why=why)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except Exception as error:
                # The test that launched it, whatever its own outcome.
                self._write(test=nodeid, outcome="error", why=last_line(str(error)))
                os._exit(DEVICE_LOST)
        self._write(finished=nodeid)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]

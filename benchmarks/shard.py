"""A plugin for pytest: run every n-th test, and write down each outcome at once.

    python -m pytest -p benchmarks.shard --shard 2/8 --outcomes FILE …

A plain CUDA image has pytest at best, without plugins that share tests out; and what a killed
process has found is in the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="INDEX/COUNT of the tests to run")
    parser.addoption("--outcomes", type=Path, help="file of one JSON object a line")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.outcomes is not None:
        config.pluginmanager.register(_Outcomes(config.option.outcomes))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, count = map(int, config.option.shard.split("/"))
    items[:] = items[index::count]


class _Outcomes:
    """Lines `{"collected": n}`, `{"started": test}` and `{"test": test, "outcome": …}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **line: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="error")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that passes its call may still fail when it is taken down.
        if report.when == "call" or report.outcome != "passed":
            broken = report.failed and report.when != "call"
            self._write(test=report.nodeid, outcome="error" if broken else report.outcome)

"""A pytest plugin that records which kernels are interpreted, and by which launchers.

    TRITON_INTERPRET=1 PYTHONPATH=tests/kernels python -m pytest -p launched --launched FILE …

A launcher is the outermost function of `fastgrow.kernels` in the call stack: forward and backward
may launch the same kernel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from triton.runtime.interpreter import InterpretedFunction

PACKAGE = "fastgrow.kernels."


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--launched", type=Path, help="file for a list of [launcher, kernel]")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Launches(config.option.launched))


class _Launches:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: set[tuple[str, str]] = set()
        run = InterpretedFunction.run

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            name = f"{kernel.fn.__module__.removeprefix(PACKAGE)}.{kernel.fn.__name__}"
            self._found.add((_launcher(), name))
            return run(kernel, *args, **kwargs)

        InterpretedFunction.run = noted

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(sorted(self._found)), encoding="utf-8")


def _launcher() -> str:
    frame, name = sys._getframe(), ""
    while frame.f_back is not None:
        frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            name = f"{module.removeprefix(PACKAGE)}.{frame.f_code.co_name}"
    return name

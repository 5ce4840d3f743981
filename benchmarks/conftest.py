"""Options of `pytest benchmarks --benchmark-only`: which of the cases."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastgrow's benchmarks")
    group.addoption("--op", default="", help="comma-separated operations; all without")
    group.addoption("--dtype", default="", help="comma-separated; fp32 on a CPU, bf16 on a GPU")
    group.addoption("--grid", default="", help="tiny, cpu or gpu; the device's own without")
    group.addoption(
        "--against", default="", help="kinds of contenders; all but compile-max without"
    )
    group.addoption(
        "--full-grid", action="store_true", help="every shape and pass, not one of each"
    )

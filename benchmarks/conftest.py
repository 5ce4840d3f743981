"""Options of `pytest benchmarks --benchmark-only` that select cases."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastgrow's benchmarks")
    group.addoption("--op", default="", help="comma-separated operations (default: all)")
    group.addoption(
        "--dtype",
        default="",
        help="comma-separated dtypes (default: fp32 on a CPU, bf16 on a GPU)",
    )
    group.addoption(
        "--grid", default="", help="grid of shapes: tiny, cpu or gpu (default: the device's)"
    )
    group.addoption(
        "--against",
        default="",
        help="comma-separated kinds of contenders (default: all but compile-max)",
    )
    group.addoption(
        "--full-grid",
        action="store_true",
        help="measure every shape and pass, not one of each operation",
    )

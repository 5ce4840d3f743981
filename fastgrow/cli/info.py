"""`fastgrow info`: print versions, devices and chosen implementations."""

from __future__ import annotations


def info() -> None:
    """Print versions, devices and the chosen implementations.

    For each operation, it prints which implementation is used and why.
    """
    from fastgrow import info as report

    report.main()

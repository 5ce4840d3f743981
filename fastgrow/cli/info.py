"""`fastgrow info`: print versions, devices and chosen implementations."""

from __future__ import annotations


def info() -> None:
    """Print versions, devices, and which implementation each operation uses and why."""
    from fastgrow import info as report

    report.main()

"""Report the skipped tests by reason at the end of a test run."""

from __future__ import annotations

import re
from collections import Counter

from _pytest.terminal import TerminalReporter

SKIPPED = "skipped, by reason"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print each reason why tests were skipped, with their number, on a separate line.

    A test that runs others in a separate process passes on what was skipped there by
    `record_property(SKIPPED, skipped_in(output))`.
    """
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        _, _, reason = report.longrepr
        counts[reason.removeprefix("Skipped: ")] += 1
    for report in terminalreporter.getreports("passed"):
        for name, inner in report.user_properties:
            if name == SKIPPED:
                counts.update(inner)
    if counts:
        terminalreporter.section(SKIPPED)
        for reason, n in counts.most_common():
            terminalreporter.line(f"{n:5} × {reason}")


def skipped_in(output: str) -> dict[str, int]:
    """Return the number of skipped tests by reason, from the output of a pytest run."""
    _, _, lines = output.partition(SKIPPED)
    return {reason: int(n) for n, reason in re.findall(r"^ *(\d+) × (.+)$", lines, re.MULTILINE)}

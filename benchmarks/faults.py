"""Launches of a kernel's candidates that ended their process, or did not end.

After an illegal access nothing runs on the device in that process, and one that never returns is
ended with its process. Either would meet every later call again, which has no entry for its bucket,
and what is tuned after it would have none either: so it is left out until its kernel changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.candidates import Trial

# Seconds, of a process that had to be killed, after which its last launch is what kept it. Launches
# take milliseconds; only one that is compiled again takes up to seconds.
HANGS = 5.0


@dataclass(frozen=True)
class Fault(Trial):
    """A trial that is not made again, and why."""

    why: str

    def __str__(self) -> str:
        what = "inputs" if self.configuration is None else self.configuration
        return f"{self.kernel} {self.bucket} {what}: {self.why}"


class Watch:
    """What one process that tunes is trying."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._trying: dict[str, Any] | None = None
        self._since = 0.0

    def tries(self, trial: dict[str, Any] | None) -> None:
        """It makes a trial from now on; None: it makes none."""
        self._trying, self._since = trial, self._now()

    def fault(self, ended: str, was_killed: bool) -> Fault | None:
        """The trial that the process ended by, if it was one.

        Args:
            ended: what became of the process.
            was_killed: because its time was over.
        """
        if self._trying is None:
            return None
        if not was_killed:
            return Fault(**self._trying, why=f"its process {ended}")
        seconds = self._now() - self._since
        if seconds < HANGS:
            return None
        return Fault(**self._trying, why=f"it did not end in {seconds:.0f} s")

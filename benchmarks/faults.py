"""Launches of kernel candidates that ended their process, or did not return.

After an illegal access, a process can run nothing on the device any more; a launch that never
returns is ended by killing its process. A later call would fail in the same way, and tune neither
this bucket nor those after it. Such a launch is therefore skipped until its kernel changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.candidates import Trial

# If a process has to be killed, its last launch is taken to hang if it started more than this many
# seconds ago. Launches take milliseconds, or up to seconds if they compile again.
HANGS = 5.0


@dataclass(frozen=True)
class Fault(Trial):
    """A trial that is not repeated, and why."""

    why: str

    def __str__(self) -> str:
        what = "inputs" if self.configuration is None else self.configuration
        return f"{self.kernel} {self.bucket} {what}: {self.why}"


class Watch:
    """Keeps the current trial of a tuning process."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._trying: dict[str, Any] | None = None
        self._since = 0.0

    def tries(self, trial: dict[str, Any] | None) -> None:
        """Note that the process starts a trial, or that none is running (None)."""
        self._trying, self._since = trial, self._now()

    def fault(self, ended: str, was_killed: bool) -> Fault | None:
        """Return the trial that ended the process, or None if no trial did.

        Args:
            ended: how the process ended.
            was_killed: whether the process was killed because its time was over.
        """
        if self._trying is None:
            return None
        if not was_killed:
            return Fault(**self._trying, why=f"its process {ended}")
        seconds = self._now() - self._since
        if seconds < HANGS:
            return None
        return Fault(**self._trying, why=f"did not return within {seconds:.0f} s")

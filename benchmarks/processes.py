"""Run a piece of work in a separate process, so that an error ends only that process.

`python -m benchmarks.worker` reads the work as JSON, and each line of JSON that it writes is passed
on, until it ends, dies or is killed at its time limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks import ROOT

Work = dict[str, Any]
Answer = dict[str, Any]
DEVICE_LOST = 70  # exit status
WORKER = ("-m", "benchmarks.worker")
PARENT = "BENCHMARKS_PARENT"


class Workers:
    """Worker processes, one at a time; the next one starts while the current one works.

    Importing torch and initialising the device take seconds, which would be a large part of a short
    piece of work.
    """

    def __init__(self) -> None:
        self._next = start_worker()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._next)

    def run(self, work: Work, limit: float, on_answer: Callable[[Answer], None]) -> str:
        """Run a piece of work for at most `limit` seconds.

        Returns:
            An empty string if the process succeeded, or how it ended.
        """
        process, self._next = self._next, start_worker()
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            process.kill()

        timer = threading.Timer(max(0.0, limit), kill)
        timer.daemon = True
        timer.start()
        try:
            give(process, work)
            assert process.stdout is not None
            for line in process.stdout:
                answer = _parsed(line)
                if answer is not None:
                    on_answer(answer)
            status = process.wait()
        finally:
            timer.cancel()
            end(process)
        return f"cut short after {limit:.0f} s" if killed.is_set() else status_text(status)


def start_worker() -> subprocess.Popen[bytes]:
    """Start a process that waits for its work and writes answers to its standard output."""
    return subprocess.Popen(
        [sys.executable, *WORKER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **bound(),
    )


def give(process: subprocess.Popen[bytes], work: Work) -> None:
    assert process.stdin is not None
    # A process that died at its start is reported by its exit status.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(work).encode())


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def status_text(status: int) -> str:
    """Describe an exit status; empty for success."""
    if status == 0:
        return ""
    if status == DEVICE_LOST:
        return "lost the device"
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _parsed(line: bytes) -> Answer | None:
    """Parse a line; return None for one that was cut off."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def bound() -> dict[str, Any]:
    """Return the `Popen` options for a process that calls `die_with_parent`.

    The process is in a separate process group, so that Ctrl-C does not reach it directly: the
    process that started it receives it and ends the other.
    """
    return {"env": os.environ | {PARENT: str(os.getpid())}, "process_group": 0}


def die_with_parent() -> None:
    """Make Linux kill this process when the process that started it ends for any reason."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        # The parent may have ended while this process was importing torch, which takes seconds.
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os._exit(1)

"""A process of its own for a piece of work: what goes wrong in it ends it alone.

`run_worker` starts `python -m benchmarks.worker`, hands it the work as JSON and passes on each line
of JSON that it answers with, until it ends, dies or is killed at its limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.machine import ROOT

Work = dict[str, Any]
Answer = dict[str, Any]
DEVICE_LOST = 70  # exit status
WORKER = ("-m", "benchmarks.worker")


def run_worker(work: Work, limit: float, on_answer: Callable[[Answer], None]) -> str:
    """Run a piece of work for at most `limit` seconds.

    Returns:
        How it ended: empty where it ended by itself, or what became of it.
    """
    process = start_worker(work)
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        process.kill()

    timer = threading.Timer(max(0.0, limit), kill)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            answer = _parsed(line)
            if answer is not None:
                on_answer(answer)
        status = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return f"cut short after {limit:.0f} s" if killed.is_set() else told(status)


def start_worker(work: Work) -> subprocess.Popen[bytes]:
    """A process that has been given its work; its answers come on its standard output."""
    process = subprocess.Popen(
        [sys.executable, *WORKER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    # One that died at its start is told by its status.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(work).encode())
    return process


def told(status: int) -> str:
    """An exit status in words; empty for success."""
    if status == 0:
        return ""
    if status == DEVICE_LOST:
        return "lost the device"
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _parsed(line: bytes) -> Answer | None:
    """What a line says; None for one that was cut off."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is gone, however it went."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

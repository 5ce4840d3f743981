"""Compile the contenders of later cases in advance, in processes that run during measurements.

`torch.compile` takes ten seconds to a minute for a case. A separate process runs the case once,
which fills the caches on disk that all processes share, and writes a marker file for each contender
that is ready. Until then, the case is measured without this contender.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Work, end, give, start_worker


class Warming:
    """Context manager that runs `warm` for each cell in order until the block ends.

    Args:
        work: the work of every process, without its cell.
        cells: cells, most important first.
        slots: number of processes at a time.
    """

    def __init__(self, work: Work, cells: Sequence[dict[str, Any]], slots: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastgrow-ready-")
        self._work = work
        self._waiting = deque(cells)
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(slots)]
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_over = False
        self._lock = threading.Lock()

    @property
    def ready(self) -> Path:
        """The folder of marker files."""
        return Path(self._folder.name)

    def __enter__(self) -> Warming:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
            for process in self._running:
                process.kill()
        for thread in self._threads:
            thread.join()
        self._folder.cleanup()

    def _serve(self) -> None:
        while True:
            # The lock is held while a process starts, so that none starts after the end.
            with self._lock:
                if self._is_over or not self._waiting:
                    return
                cell = self._waiting.popleft()
                process = start_worker()
                self._running.add(process)
            give(process, {**self._work, "work": "warm", "cell": cell, "ready": str(self.ready)})
            process.wait()
            with self._lock:
                self._running.discard(process)
            end(process)

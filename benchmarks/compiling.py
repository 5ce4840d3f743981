"""Compile on all cores while the GPU measures, in processes that do not use the GPU.

Each core has a thread here and a separate process. If a process dies, as a compiler may, only its
current job is lost; the thread starts another process.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

Configuration = dict[str, int]
# The result of a job, or the reason why it has none.
Outcome = dict[str, int] | str

# Niceness of the compiling processes: the measuring process has a higher priority.
NICE = 10


class Buildable(Protocol):
    """The part of a tunable (benchmarks/tuning.py) that compiling needs."""

    def build(
        self, configuration: Configuration | None, only: str | None = None
    ) -> dict[str, int]: ...


@dataclass(frozen=True)
class Job:
    """A compilation: `code` of a configuration of the tunable at `index` in a module's list."""

    module: str
    index: int
    capability: int
    configuration: Configuration | None
    code: str


class Compilers:
    """Context manager that compiles jobs in the order in which they are added.

    Args:
        multiprocessors: number of multiprocessors of the target GPU, if known.

    Attributes:
        outcomes: results so far, by the jobs' codes. A code is compiled once.
    """

    def __init__(self, multiprocessors: int | None = None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._multiprocessors = multiprocessors
        self._jobs: deque[Job] = deque()
        self._known: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._workers: set[Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(cores())]

    def __enter__(self) -> Compilers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop immediately, even while jobs are compiled."""
        with self._changed:
            self._closed = True
            for worker in self._workers:
                worker.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def add(self, job: Job) -> None:
        with self._changed:
            if job.code not in self._known:
                self._known.add(job.code)
                self._jobs.append(job)
                self._changed.notify_all()

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait until `until` is true; return False if it is not within `seconds`."""
        with self._changed:
            return self._changed.wait_for(until, timeout=max(0.0, seconds))

    def _serve(self) -> None:
        """Run jobs on one core."""
        worker: Worker | None = None
        while (job := self._next()) is not None:
            try:
                worker = worker or self._start()
                outcome = worker.build(job)
            except (EOFError, OSError) as error:
                outcome = f"{error}" if worker is None else worker.death()
                worker = None
            with self._changed:
                self.outcomes[job.code] = outcome
                self._changed.notify_all()

    def _next(self) -> Job | None:
        """Return the next job, or None after closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._jobs))
            return None if self._closed else self._jobs.popleft()

    def _start(self) -> Worker:
        worker = Worker(self._multiprocessors)
        with self._changed:
            self._workers.add(worker)
            if self._closed:
                worker.kill()
        return worker


class Worker:
    """A process that compiles one job at a time."""

    def __init__(self, multiprocessors: int | None) -> None:
        # Spawned, because CUDA cannot be used in a forked process.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, multiprocessors), daemon=True)
        self._process.start()
        # Closed here, so that the pipe ends with the process.
        theirs.close()

    def build(self, job: Job) -> Outcome:
        """Compile a job.

        Raises:
            EOFError, OSError: the process died.
        """
        self._pipe.send(job)
        outcome: Outcome = self._pipe.recv()
        return outcome

    def kill(self) -> None:
        self._process.kill()

    def death(self) -> str:
        """Return how a process that has ended died."""
        self._process.join()
        code = self._process.exitcode or 0
        what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the compiling process died: {what}"


def _work(pipe: Connection, multiprocessors: int | None) -> None:
    from fastgrow.kernels.tuned import assumed

    # The process compiles for a GPU but must not use its memory or time.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(NICE)
    # Ctrl-C reaches all processes of the group; the measuring process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with assumed(multiprocessors=multiprocessors):
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            pipe.send(build_one(job))


def build_one(job: Job) -> Outcome:
    """Compile a job in this process."""
    try:
        tunable: Buildable = _listed_once(job.module, job.capability)[job.index]
        return tunable.build(job.configuration, job.code)
    except Exception as error:
        return error_line(error)


def listed(module: str, capability: int) -> list[Any]:
    """Return a module's tunables."""
    found: list[Any] = importlib.import_module(module).tunables(capability)
    return found


# A compiling process makes the tunables' inputs only once.
_listed_once = functools.cache(listed)


def error_line(error: Exception) -> str:
    """Format an error as one line."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

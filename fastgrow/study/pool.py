"""Jobs in several processes, in an order that respects what needs what, and stoppable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgrow.errors import ConfigError, FastgrowError, Interrupted
from fastgrow.training import InterruptGuard

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        label: what messages call it.
        command: the program and its arguments.
        log: a file that its output is appended to.
        needs: labels of jobs that have to be finished before.
    """

    label: str
    command: Sequence[str]
    log: Path
    needs: frozenset[str] = field(default_factory=frozenset)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: int


def run_jobs(jobs: Sequence[Job], at_once: int, say: Callable[[str], None]) -> None:
    """Run all jobs, at most `at_once` at a time, each as soon as what it needs is finished.

    The first Ctrl-C (or SIGTERM) is passed on once to the running ones, which save and end; so is
    the failure of one.

    Args:
        jobs: in the order in which they are begun; what is needed and not among them is finished.
        at_once: processes, at least 1.
        say: takes a line for each job that ends.

    Raises:
        ConfigError: at_once is below 1.
        Interrupted: the user stopped it, and all that ran has ended.
        FastgrowError: a job failed; the message holds its last line and where to read the rest.
    """
    if at_once < 1:
        raise ConfigError(f"jobs: expected at least 1, got {at_once}")
    waiting, running = list(jobs), list[_Running]()
    unfinished = {job.label for job in jobs}
    failure: str | None = None
    stopping = False
    with InterruptGuard() as guard:
        try:
            while running or (waiting and not stopping):
                if (guard.requested is not None or failure is not None) and not stopping:
                    stopping = True
                    _signal(running)
                if not stopping:
                    _begin(waiting, running, unfinished, at_once)
                time.sleep(_POLL_SECONDS)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    if one.process.returncode == 0:
                        unfinished.remove(one.job.label)
                        say(f"{len(jobs) - len(unfinished)}/{len(jobs)} {one.job.label}")
                    elif not stopping:
                        failure = failure or _failure(one)
        finally:
            # A second Ctrl-C leaves the loop at once: then nothing is saved, and nothing runs on.
            for one in running:
                one.process.kill()
                one.process.wait()
    if failure is not None:
        raise FastgrowError(failure)
    if unfinished:
        raise Interrupted(
            f"stopped with {len(unfinished)} of {len(jobs)} jobs to go; what was done is saved, "
            "and the same command goes on"
        )


def _begin(waiting: list[Job], running: list[_Running], unfinished: set[str], at_once: int) -> None:
    for job in list(waiting):
        if len(running) >= at_once:
            return
        if job.needs & unfinished:
            continue
        waiting.remove(job)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            began = log.tell()
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # One thread each. Not in the terminal's group, whose Ctrl-C would come to it twice.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        running.append(_Running(job, process, began))


def _signal(running: Sequence[_Running]) -> None:
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)


def _failure(one: _Running) -> str:
    with one.job.log.open("rb") as log:
        log.seek(one.began)
        lines = log.read().decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit status {one.process.returncode}"
    return f"{one.job.label}: {last} (log: {one.job.log})"


def worker(*arguments: str) -> list[str]:
    """The command of a study's worker."""
    return [sys.executable, "-m", "fastgrow.study.worker", *arguments]

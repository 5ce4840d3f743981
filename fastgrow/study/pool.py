"""Run jobs in several processes in the order of their dependencies; they can be stopped."""

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
        label: name of the job in messages.
        command: the program and its arguments.
        log: file to which the output is appended.
        needs: labels of the jobs that must finish first.
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
    """Run all jobs, at most `at_once` at a time, each after the jobs that it needs.

    At the first Ctrl-C (or SIGTERM), or if a job fails, the running jobs get SIGTERM once; they
    save their state and end.

    Args:
        jobs: jobs in the order in which they are started; a needed job that is not in the list is
            assumed to be finished.
        at_once: number of processes, at least 1.
        say: called with one line for each job that ends.

    Raises:
        ConfigError: at_once is below 1.
        Interrupted: the user stopped the jobs, and all of them have ended.
        FastgrowError: a job failed; the message has its last line and the path of its log.
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
            # A second Ctrl-C ends the loop immediately: the jobs are killed without saving.
            for one in running:
                one.process.kill()
                one.process.wait()
    if failure is not None:
        raise FastgrowError(failure)
    if unfinished:
        raise Interrupted(
            f"stopped with {len(unfinished)} of {len(jobs)} jobs unfinished; all progress is "
            "saved, run the same command again to resume"
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
                # One thread for each process. In a new session, as otherwise a Ctrl-C in the
                # terminal would reach the process twice.
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
    """Return the command of a study's worker."""
    return [sys.executable, "-m", "fastgrow.study.worker", *arguments]

"""Choosing the fastest of each kernel's shipped configurations on this GPU.

A module of `fastgrow.kernels` takes part by a function

    def tunables(capability: int) -> list[Tunable]

(capability 90 for compute capability 9.0) that lists, for each kernel and each bucket of
dtype and shape under which the launcher looks a configuration up, an object with

    kernel: str                          such as "attention_forward"
    bucket: str                          such as "bf16/D=32/T=4096": the launcher's own key
    candidates: list[dict[str, int]]     the shipped configurations, the default one first
    build(configuration) -> dict[str, int]
                                         compile for `capability` without launching; gives at least
                                         {"spills": …, "shared": …}; raises if it does not compile
    launcher() -> Callable[[dict[str, int]], object]
                                         makes random inputs on the GPU; each call launches a
                                         configuration on them once
    rank: int                            lower ones come first, where time is short
    code: str                            tunables of a kernel with the same one compile alike

`fastgrow.kernels.tunable.Tunable` is such an object. `build` runs in worker processes, all cores at
once: it leaves the result in Triton's cache on disk, where the launch finds it. Candidates that
spill, do not compile or do not run are left out; the others are timed interleaved, on the same
inputs, which can take gigabytes. The table that results:

    {"schema": 1, "device": …, "capability": 90, "triton": …, "entries": {
        "attention_forward": {"bf16/D=32/T=4096": {"configuration": {…}, "median_ms": …,
            "default_ms": …, "candidates": 12, "left_out": 3}}}}
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.clock import Clock
from benchmarks.interleave import Limits, interleaved
from benchmarks.summary import quantile

SCHEMA = 1
ROUNDS = 25
TOO_LATE = "not compiled in time"
Configuration = dict[str, int]


class Tunable(Protocol):
    """A kernel in one bucket, as described above."""

    kernel: str
    bucket: str
    candidates: Sequence[Configuration]
    rank: int
    code: str

    def build(self, configuration: Configuration) -> dict[str, int]: ...

    def launcher(self) -> Callable[[Configuration], object]: ...


def kernel_modules() -> list[str]:
    """Modules of fastgrow.kernels that have something to tune."""
    from fastgrow.kernels.tunable import tuning_modules

    return tuning_modules()


def tune(
    modules: Sequence[str],
    capability: int,
    clock: Clock,
    seconds: float,
    *,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The table's entries, and what was left out; stops when the time is over.

    Compiling may take half of the time; what is not compiled by then is left out.
    """
    end = now() + seconds
    found = entrants(modules, capability)
    jobs = [job for entrant in found if entrant.compiles for job in entrant.jobs]
    builds = build_all(jobs, seconds / 2)
    entries: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    missed: list[str] = []
    for entrant in found:
        tunable = entrant.tunable
        name = f"{tunable.kernel} {tunable.bucket}"
        outcomes = [builds[job.label] for job in entrant.jobs]
        if now() >= end or all(outcome == TOO_LATE for outcome in outcomes):
            missed.append(name)
            continue
        reasons = [_refusal(outcome) for outcome in outcomes]
        usable = [c for c, reason in zip(tunable.candidates, reasons, strict=True) if not reason]
        if entrant.compiles:
            refused = zip(tunable.candidates, reasons, strict=True)
            notes += [f"{name} {c}: {reason}" for c, reason in refused if reason]
        if usable:
            entry, failures = _measured(tunable, usable, clock)
            notes += [f"{name} {failure}" for failure in failures]
            if entry is not None:
                entries.setdefault(tunable.kernel, {})[tunable.bucket] = entry
    if missed:
        notes.append(f"no time left for {', '.join(missed)}")
    return {"entries": entries, "notes": notes}


@dataclass(frozen=True)
class Job:
    """A candidate to compile: of the tunable that a module lists at `index`."""

    module: str
    index: int
    capability: int
    candidate: Configuration

    @property
    def label(self) -> str:
        return f"{self.module}/{self.index}/{sorted(self.candidate.items())}"


@dataclass(frozen=True)
class Entrant:
    """A tunable and what has to be compiled for it.

    Args:
        jobs: of an earlier tunable, where that one compiles to the same code.
        compiles: the jobs are its own.
    """

    tunable: Tunable
    jobs: list[Job]
    compiles: bool


def entrants(modules: Sequence[str], capability: int) -> list[Entrant]:
    """All tunables, those first that matter most."""
    listed = [(m, i, t) for m in modules for i, t in enumerate(_tunables(m, capability))]
    listed.sort(key=lambda entry: entry[2].rank)
    by_code: dict[tuple[str, str, str], list[Job]] = {}
    found = []
    for module, index, tunable in listed:
        code = (tunable.kernel, tunable.code, str(tunable.candidates))
        own = code not in by_code
        if own:
            by_code[code] = [Job(module, index, capability, c) for c in tunable.candidates]
        found.append(Entrant(tunable, by_code[code], own))
    return found


def build_all(jobs: Sequence[Job], seconds: float) -> dict[str, dict[str, int] | str]:
    """Compile all on all cores, in order; a reason stands for what failed or came too late."""
    outcomes: dict[str, dict[str, int] | str] = {job.label: TOO_LATE for job in jobs}
    if not jobs:
        return outcomes
    # Spawned, because CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    futures = {pool.submit(build_one, job): job for job in jobs}
    try:
        for future in concurrent.futures.as_completed(futures, timeout=seconds):
            error = future.exception()
            outcome = future.result() if error is None else f"{type(error).__name__}: {error}"
            outcomes[futures[future].label] = outcome
    except TimeoutError:
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def build_one(job: Job) -> dict[str, int]:
    """Compile one candidate in this process."""
    return _tunables(job.module, job.capability)[job.index].build(job.candidate)


def _tunables(module: str, capability: int) -> list[Tunable]:
    found: list[Tunable] = importlib.import_module(module).tunables(capability)
    return found


def _refusal(outcome: dict[str, int] | str) -> str:
    """Why a candidate is left out; empty for one that takes part."""
    if isinstance(outcome, str):
        return outcome
    return f"{outcome['spills']} spills" if outcome["spills"] else ""


def _measured(
    tunable: Tunable, usable: Sequence[Configuration], clock: Clock
) -> tuple[dict[str, Any] | None, list[str]]:
    """The tunable's entry, None where nothing could be timed, and what failed."""
    running: list[Configuration] = []
    failures: list[str] = []
    try:
        launch = tunable.launcher()
        for candidate in usable:
            try:
                launch(candidate)
                running.append(candidate)
            except Exception as error:
                failures.append(f"{candidate}: {_told(error)}")
        entry = _fastest(tunable, running, launch, clock) if running else None
    except Exception as error:
        # Out of memory, say: the other tunables may have less to hold.
        return None, [*failures, f"is not tuned: {_told(error)}"]
    return entry, failures if running else [*failures, "is not tuned: no candidate runs"]


def _told(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


def _fastest(
    tunable: Tunable,
    running: Sequence[Configuration],
    launch: Callable[[Configuration], object],
    clock: Clock,
) -> dict[str, Any]:
    """Median times of those that run; the first candidate of all is the default."""
    runs = {str(i): functools.partial(launch, candidate) for i, candidate in enumerate(running)}
    steps = {name: (lambda _, run=run: run) for name, run in runs.items()}
    samples = interleaved(steps, clock, Limits(0.0, ROUNDS), 1)
    medians = [quantile(samples[str(i)], 0.5) * 1e3 for i in range(len(running))]
    best = min(range(len(running)), key=medians.__getitem__)
    has_default = running[0] == tunable.candidates[0]
    count = len(tunable.candidates)
    return {
        "configuration": running[best],
        "median_ms": medians[best],
        "default_ms": medians[0] if has_default else None,
        "candidates": count,
        "left_out": count - len(running),
    }

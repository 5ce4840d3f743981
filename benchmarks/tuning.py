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
    launcher(configuration) -> Callable[[], object]
                                         random inputs on the GPU; each call launches once

`build` runs in worker processes, all cores at once: it leaves the result in Triton's cache on
disk, where the launch finds it. Candidates that spill or do not compile are left out; the others
are timed interleaved. The table that results:

    {"schema": 1, "device": …, "capability": 90, "triton": …, "entries": {
        "attention_forward": {"bf16/D=32/T=4096": {"configuration": {…}, "median_ms": …,
            "default_ms": …, "candidates": 12, "left_out": 3}}}}
"""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
import os
import pkgutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from benchmarks.clock import Clock
from benchmarks.interleave import Limits, interleaved
from benchmarks.summary import quantile

SCHEMA = 1
ROUNDS = 25
Configuration = dict[str, int]


class Tunable(Protocol):
    """A kernel in one bucket, as described above."""

    kernel: str
    bucket: str
    candidates: Sequence[Configuration]

    def build(self, configuration: Configuration) -> dict[str, int]: ...

    def launcher(self, configuration: Configuration) -> Callable[[], object]: ...


def kernel_modules() -> list[str]:
    """Modules of fastgrow.kernels that have something to tune."""
    package = importlib.import_module("fastgrow.kernels")
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return [name for name in sorted(names) if hasattr(importlib.import_module(name), "tunables")]


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
    found = [(name, i, t) for name in modules for i, t in enumerate(_tunables(name, capability))]
    jobs = [(name, i, capability, candidate) for name, i, t in found for candidate in t.candidates]
    builds = build_all(jobs, seconds / 2)
    entries: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, i, tunable in found:
        if now() >= end:
            notes.append(f"{tunable.kernel} {tunable.bucket}: no time left")
            continue
        usable, refused = [], []
        for candidate in tunable.candidates:
            outcome = builds[_label(name, i, candidate)]
            if isinstance(outcome, str) or outcome["spills"] > 0:
                reason = outcome if isinstance(outcome, str) else f"{outcome['spills']} spills"
                refused.append(f"{candidate}: {reason}")
            else:
                usable.append(candidate)
        notes += [f"{tunable.kernel} {tunable.bucket} {text}" for text in refused]
        if usable:
            entry = _fastest(tunable, usable, clock)
            entry |= {"candidates": len(tunable.candidates), "left_out": len(refused)}
            entries.setdefault(tunable.kernel, {})[tunable.bucket] = entry
    return {"entries": entries, "notes": notes}


Job = tuple[str, int, int, Configuration]


def build_all(jobs: Sequence[Job], seconds: float) -> dict[str, dict[str, int] | str]:
    """Compile all on all cores; a reason stands for what failed or was not done in time."""
    outcomes: dict[str, dict[str, int] | str] = {
        _label(name, i, candidate): "not compiled in time" for name, i, _, candidate in jobs
    }
    if not jobs:
        return outcomes
    # Spawned, because CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    futures = {pool.submit(build_one, job): job for job in jobs}
    try:
        for future in concurrent.futures.as_completed(futures, timeout=seconds):
            name, i, _, candidate = futures[future]
            error = future.exception()
            outcome = future.result() if error is None else f"{type(error).__name__}: {error}"
            outcomes[_label(name, i, candidate)] = outcome
    except TimeoutError:
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def build_one(job: Job) -> dict[str, int]:
    """Compile one candidate in this process."""
    name, i, capability, candidate = job
    return _tunables(name, capability)[i].build(candidate)


def _tunables(module: str, capability: int) -> list[Tunable]:
    found: list[Tunable] = importlib.import_module(module).tunables(capability)
    return found


def _label(module: str, index: int, candidate: Configuration) -> str:
    return f"{module}/{index}/{sorted(candidate.items())}"


def _fastest(tunable: Tunable, usable: Sequence[Configuration], clock: Clock) -> dict[str, Any]:
    """Median times of the usable candidates; the first candidate of all is the default."""
    launchers = {str(i): tunable.launcher(candidate) for i, candidate in enumerate(usable)}
    for launch in launchers.values():
        launch()
    steps = {name: (lambda _, launch=launch: launch) for name, launch in launchers.items()}
    samples = interleaved(steps, clock, Limits(0.0, ROUNDS), 1)
    medians = [quantile(samples[str(i)], 0.5) * 1e3 for i in range(len(usable))]
    best = min(range(len(usable)), key=medians.__getitem__)
    has_default = usable[0] == tunable.candidates[0]
    return {
        "configuration": usable[best],
        "median_ms": medians[best],
        "default_ms": medians[0] if has_default else None,
    }

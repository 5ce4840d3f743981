"""Choose the fastest of each kernel's shipped configurations on this GPU.

A module of `fastgrow.kernels` is tuned if it has a function

    def tunables(capability: int) -> list[Tunable]

(capability 90 for compute capability 9.0) that returns, for each kernel and each bucket of dtype
and shape under which the launcher looks up a configuration, an object with

    kernel: str                          such as "attention_forward"
    bucket: str                          such as "bf16/D=32/T=4096": the launcher's key
    candidates: list[dict[str, int]]     the shipped configurations, the default one first
    codes(configuration) -> list[str]    one string for each kernel that a launch of a configuration
                                         compiles, equal for equal compilations; for None: those
                                         that creating the inputs compiles
    build(configuration, only) -> dict[str, int]
                                         compiles the code `only` for `capability` without launching
                                         it; returns at least {"spills": …, "shared": …}; raises an
                                         error if it does not compile
    launcher() -> Callable[[dict[str, int]], object]
                                         makes random inputs on the GPU; each call launches a
                                         configuration on them once and returns all results
    rank: int                            lower ranks are tuned first
    digest: str                          digest of the kernel's source

`fastgrow.kernels.tunable.Tunable` is such an object. `build` runs in worker processes on all cores
and writes its result to Triton's cache on disk, where the launch finds it. Candidates that spill,
do not compile, do not run or compute different results are excluded (`benchmarks.candidates`); the
others are timed interleaved on the same inputs, which can need gigabytes. The time limit is checked
before each call. If time runs out in a bucket, the fastest of the candidates timed so far is
chosen, if the default is one of them. The resulting table:

    {"schema": 1, "device": …, "capability": 90, "triton": …, "entries": {
        "attention_forward": {"bf16/D=32/T=4096": {"configuration": {…}, "median_ms": …,
            "default_ms": …, "candidates": 12, "left_out": 3, "source": …}}}}
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.candidates import Bench, Entry, Trial, Tunable, measured
from benchmarks.clock import Clock
from benchmarks.compiling import Compilers, Configuration, Job, Outcome, error_line, listed
from benchmarks.faults import Fault
from fastgrow.kernels.tuned import assumed, multiprocessors

CPU = torch.device("cpu")


def tune(
    modules: Sequence[str],
    capability: int,
    clock: Clock,
    seconds: float,
    *,
    device: torch.device = CPU,
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] = {},
    faults: Sequence[Fault] = (),
    on_entry: Callable[[str, str, Entry], None] = lambda kernel, bucket, entry: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_trial: Callable[[Trial | None], None] = lambda trial: None,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Find the table's entries until the time is over, and report what was excluded.

    A bucket is measured as soon as its candidates are compiled; meanwhile those of later buckets
    are compiled.

    Args:
        modules: names of the modules that list tunables.
        capability: compute capability times ten.
        clock: clock of the device.
        seconds: time limit.
        device: device to measure on.
        first_rank: exclude buckets of a higher rank.
        known: entries by kernel and bucket, which are not measured again.
        faults: trials that are not repeated.
        on_entry: called with kernel, bucket and entry as soon as a bucket is measured.
        on_note: called with each note.
        on_trial: called with each trial before it is launched, and with None after a bucket.
        now: returns the time in seconds.

    Raises:
        DeviceLost: the device can run nothing any more, because of the last trial.
    """
    from fastgrow.kernels.compile_offline import compilations

    end = now() + seconds
    processors = multiprocessors(device, 0) or None
    bench = Bench(clock, device, lambda: now() >= end, on_trial)
    reported: set[str] = set()
    waiting: list[Entrant] = []
    with (
        assumed(multiprocessors=processors),
        Compilers(processors) as compilers,
        compilations() as compiled,
    ):
        for entrant in entrants(modules, capability, first_rank, known):
            try:
                for job in entrant.jobs:
                    compilers.add(job)
                waiting.append(entrant)
            except Exception as error:
                on_note(f"{entrant.name} is not tuned: {error_line(error)}")
        while (ready := _next_ready(waiting, compilers, end - now())) and now() < end:
            waiting.remove(ready)
            usable, rejected = ready.usable(compilers.outcomes, faults, reported)
            for note in rejected:
                on_note(note)
            entry, notes = measured(ready.tunable, usable, bench)
            on_trial(None)
            for note in notes:
                on_note(f"{ready.name} {note}")
            if entry is not None:
                on_entry(ready.tunable.kernel, ready.tunable.bucket, entry)
        late = [entrant.name for entrant in waiting if not entrant.is_compiled(compilers)]
    missed = [entrant.name for entrant in waiting if entrant.name not in late]
    if compiled:
        counts = ", ".join(f"{name} {count}" for name, count in Counter(compiled).items())
        on_note(f"compiled again while candidates were measured: {counts}")
    if late:
        on_note(f"not compiled in time: {', '.join(late)}")
    if missed:
        on_note(f"not measured, because no time was left: {', '.join(missed)}")


@dataclass
class Entrant:
    """A tunable with its index in its module's list."""

    module: str
    index: int
    capability: int
    tunable: Tunable

    @property
    def name(self) -> str:
        return f"{self.tunable.kernel} {self.tunable.bucket}"

    @functools.cached_property
    def jobs(self) -> list[Job]:
        """Compilations of all that will be launched; candidates first, which take longest."""
        return [
            Job(self.module, self.index, self.capability, configuration, code)
            for configuration in (*self.tunable.candidates, None)
            for code in self.tunable.codes(configuration)
        ]

    def is_compiled(self, compilers: Compilers) -> bool:
        return all(job.code in compilers.outcomes for job in self.jobs)

    def usable(
        self, outcomes: Mapping[str, Outcome], faults: Sequence[Fault], reported: set[str]
    ) -> tuple[list[Configuration], list[str]]:
        """Return the candidates that may be launched, and notes on the others.

        Args:
            outcomes: results of the compilations by their codes.
            faults: trials that are not repeated.
            reported: codes for which there is a note already, because buckets share them; codes are
                added to it.
        """
        this = (self.tunable.kernel, self.tunable.bucket, self.tunable.digest)
        faults = [fault for fault in faults if (fault.kernel, fault.bucket, fault.source) == this]
        notes = [str(fault) for fault in faults]
        rejected = [fault.configuration for fault in faults]
        if None in rejected:
            return [], notes
        for job in self.jobs:
            reason = _rejection(outcomes[job.code])
            # If inputs cannot be made, making them will report it.
            if reason and job.configuration is not None:
                rejected.append(job.configuration)
                if job.code not in reported:
                    reported.add(job.code)
                    notes.append(f"{self.name} {job.configuration}: {reason}")
        return [c for c in self.tunable.candidates if c not in rejected], notes


def entrants(
    modules: Sequence[str],
    capability: int,
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] = {},
) -> list[Entrant]:
    """Return all tunables without an entry for their present source, lowest rank first."""
    return sorted(
        (
            Entrant(module, index, capability, tunable)
            for module in modules
            for index, tunable in enumerate(listed(module, capability))
            if first_rank is None or tunable.rank <= first_rank
            if known.get(tunable.kernel, {}).get(tunable.bucket, {}).get("source") != tunable.digest
        ),
        key=lambda entrant: entrant.tunable.rank,
    )


def _next_ready(waiting: Sequence[Entrant], compilers: Compilers, seconds: float) -> Entrant | None:
    """Return the first entrant that is compiled; None if none is in time, or none is left."""
    compilers.wait(lambda: not waiting or any(e.is_compiled(compilers) for e in waiting), seconds)
    return next((entrant for entrant in waiting if entrant.is_compiled(compilers)), None)


def _rejection(outcome: Outcome) -> str:
    """Return why a compiled candidate is not launched; empty if it may be launched."""
    if isinstance(outcome, str):
        return outcome
    return f"{outcome['spills']} spills" if outcome["spills"] else ""

"""Choosing the fastest of each kernel's shipped configurations on this GPU.

A module of `fastgrow.kernels` takes part by a function

    def tunables(capability: int) -> list[Tunable]

(capability 90 for compute capability 9.0) that lists, for each kernel and each bucket of
dtype and shape under which the launcher looks a configuration up, an object with

    kernel: str                          such as "attention_forward"
    bucket: str                          such as "bf16/D=32/T=4096": the launcher's own key
    candidates: list[dict[str, int]]     the shipped configurations, the default one first
    codes(configuration) -> list[str]    what a launch of a configuration compiles to, a text each,
                                         the same for what compiles alike; of None: what making the
                                         inputs does
    build(configuration, only) -> dict[str, int]
                                         compile the one of those codes for `capability` without
                                         launching; gives at least {"spills": …, "shared": …};
                                         raises if it does not compile
    launcher() -> Callable[[dict[str, int]], object]
                                         makes random inputs on the GPU; each call launches a
                                         configuration on them once and returns all that it
                                         computes
    rank: int                            lower ones come first, where time is short
    digest: str                          of the kernel's source

`fastgrow.kernels.tunable.Tunable` is such an object. `build` runs in worker processes on all cores:
it leaves the result in Triton's cache on disk, where the launch finds it. Candidates that spill, do
not compile, do not run or compute something else are left out (`benchmarks.candidates`); the others
are timed interleaved, on the same inputs, which can take gigabytes. The clock is read before each
call. A bucket whose time is over is decided between the candidates that were timed so far, if the
default is one of them. The table that results:

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
from benchmarks.compiling import Compilers, Configuration, Job, Outcome, listed, told
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
    """Find the table's entries, and tell what was left out; stops when the time is over.

    A bucket is measured as soon as its candidates are compiled, which those of the later ones are
    meanwhile.

    Args:
        device: where the clock measures.
        first_rank: leave out buckets of a higher rank.
        known: entries by kernel and bucket, which are not measured again.
        faults: trials that are not made.
        on_entry: called with kernel, bucket and entry as soon as a bucket is measured.
        on_note: called with each note as soon as there is something to be said.
        on_trial: called with what comes next on the device, and with None after a bucket.

    Raises:
        DeviceLost: nothing runs on the device any more; the last trial's doing.
    """
    from fastgrow.kernels.compile_offline import compilations

    end = now() + seconds
    processors = multiprocessors(device, 0) or None
    bench = Bench(clock, device, lambda: now() >= end, on_trial)
    told_of: set[str] = set()
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
                on_note(f"{entrant.name} is not tuned: {told(error)}")
        while (ready := _next_ready(waiting, compilers, end - now())) and now() < end:
            waiting.remove(ready)
            usable, refused = ready.usable(compilers.outcomes, faults, told_of)
            for note in refused:
                on_note(note)
            entry, said = measured(ready.tunable, usable, bench)
            on_trial(None)
            for what in said:
                on_note(f"{ready.name} {what}")
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
        on_note(f"no time left for {', '.join(missed)}")


@dataclass
class Entrant:
    """A tunable with the place where its module lists it."""

    module: str
    index: int
    capability: int
    tunable: Tunable

    @property
    def name(self) -> str:
        return f"{self.tunable.kernel} {self.tunable.bucket}"

    @functools.cached_property
    def jobs(self) -> list[Job]:
        """Everything that measuring will launch; the candidates first, which take longest."""
        return [
            Job(self.module, self.index, self.capability, configuration, code)
            for configuration in (*self.tunable.candidates, None)
            for code in self.tunable.codes(configuration)
        ]

    def is_compiled(self, compilers: Compilers) -> bool:
        return all(job.code in compilers.outcomes for job in self.jobs)

    def usable(
        self, outcomes: Mapping[str, Outcome], faults: Sequence[Fault], told_of: set[str]
    ) -> tuple[list[Configuration], list[str]]:
        """The candidates that may be launched, and notes on the others.

        Args:
            outcomes: of compiling, by what is compiled.
            faults: trials that are not made again.
            told_of: what buckets share and a note has told of; grows.
        """
        this = (self.tunable.kernel, self.tunable.bucket, self.tunable.digest)
        faults = [fault for fault in faults if (fault.kernel, fault.bucket, fault.source) == this]
        notes = [str(fault) for fault in faults]
        refused = [fault.configuration for fault in faults]
        if None in refused:
            return [], notes
        for job in self.jobs:
            reason = _refusal(outcomes[job.code])
            # Inputs that cannot be made are told by making them.
            if reason and job.configuration is not None:
                refused.append(job.configuration)
                if job.code not in told_of:
                    told_of.add(job.code)
                    notes.append(f"{self.name} {job.configuration}: {reason}")
        return [c for c in self.tunable.candidates if c not in refused], notes


def entrants(
    modules: Sequence[str],
    capability: int,
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] = {},
) -> list[Entrant]:
    """All tunables that have no entry of their source yet, those first that matter most."""
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
    """The first that is compiled; None where none is in time, or none is left."""
    compilers.wait(lambda: not waiting or any(e.is_compiled(compilers) for e in waiting), seconds)
    return next((entrant for entrant in waiting if entrant.is_compiled(compilers)), None)


def _refusal(outcome: Outcome) -> str:
    """Why what was compiled is not launched; empty where it may be."""
    if isinstance(outcome, str):
        return outcome
    return f"{outcome['spills']} spills" if outcome["spills"] else ""

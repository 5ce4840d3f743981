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

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.candidates import Bench, Entry, Trial, Tunable, measured
from benchmarks.clock import Clock
from benchmarks.compiling import Compilers, Configuration, Job, Outcome, listed, told
from benchmarks.faults import Fault

SCHEMA = 1
CPU = torch.device("cpu")


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
    device: torch.device = CPU,
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] | None = None,
    faults: Sequence[Fault] = (),
    on_entry: Callable[[str, str, Entry], None] = lambda kernel, bucket, entry: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_trial: Callable[[Trial | None], None] = lambda trial: None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The table's entries, and what was left out; stops when the time is over.

    A bucket is measured as soon as its candidates are compiled, which those of the later ones are
    meanwhile.

    Args:
        device: where the clock measures.
        first_rank: leave out buckets of a higher rank.
        known: entries by kernel and bucket; they are returned too, and not measured again.
        faults: trials that are not made.
        on_entry: called with kernel, bucket and entry as soon as a bucket is measured.
        on_note: called with each note as soon as there is something to be said.
        on_trial: called with what comes next on the device, and with None after a bucket.

    Raises:
        DeviceLost: nothing runs on the device any more; the last trial's doing.
    """
    from fastgrow.kernels.ahead import compilations
    from fastgrow.kernels.multiprocessors import assumed

    end = now() + seconds
    entries: dict[str, dict[str, Entry]] = {k: dict(v) for k, v in (known or {}).items()}
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        on_note(note)

    processors = _multiprocessors()
    bench = Bench(clock, device, lambda: now() >= end, on_trial)
    with assumed(processors), Compilers(processors) as compilers:
        waiting: list[Entrant] = []
        for entrant in entrants(modules, capability, first_rank, entries):
            try:
                entrant.add_to(compilers)
                waiting.append(entrant)
            except Exception as error:
                say(f"{entrant.name} is not tuned: {told(error)}")
        refusals = Refusals(compilers.outcomes, faults)
        with compilations() as compiled:
            while (ready := _next_ready(waiting, compilers, end - now())) and now() < end:
                waiting.remove(ready)
                usable, refused = refusals.of(ready)
                for note in refused:
                    say(note)
                entry, said = measured(ready.tunable, usable, bench)
                on_trial(None)
                for what in said:
                    say(f"{ready.name} {what}")
                if entry is not None:
                    kernel, bucket = ready.tunable.kernel, ready.tunable.bucket
                    entries.setdefault(kernel, {})[bucket] = entry
                    on_entry(kernel, bucket, entry)
        late = [entrant.name for entrant in waiting if not entrant.is_compiled(compilers)]
    missed = [entrant.name for entrant in waiting if entrant.name not in late]
    if compiled:
        counts = ", ".join(f"{name} {count}" for name, count in Counter(compiled).items())
        say(f"compiled again while candidates were measured: {counts}")
    if late:
        say(f"not compiled in time: {', '.join(late)}")
    if missed:
        say(f"no time left for {', '.join(missed)}")
    return {"entries": entries, "notes": notes}


@dataclass
class Entrant:
    """A tunable with the place where its module lists it.

    Args:
        codes: what each candidate compiles to, and for None what making the inputs does.
    """

    module: str
    index: int
    capability: int
    tunable: Tunable
    codes: list[tuple[Configuration | None, list[str]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.tunable.kernel} {self.tunable.bucket}"

    def add_to(self, compilers: Compilers) -> None:
        """Let everything be compiled that measuring will launch."""
        # The candidates first: they take longest.
        for configuration in (*self.tunable.candidates, None):
            codes = self.tunable.codes(configuration)
            self.codes.append((configuration, codes))
            for code in codes:
                compilers.add(Job(self.module, self.index, self.capability, configuration, code))

    def is_compiled(self, compilers: Compilers) -> bool:
        return all(code in compilers.outcomes for _, codes in self.codes for code in codes)


def entrants(
    modules: Sequence[str],
    capability: int,
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] | None = None,
) -> list[Entrant]:
    """All tunables that have no entry of their source yet, those first that matter most."""
    found = [
        Entrant(module, index, capability, tunable)
        for module in modules
        for index, tunable in enumerate(listed(module, capability))
        if first_rank is None or tunable.rank <= first_rank
        if _source((known or {}).get(tunable.kernel, {}).get(tunable.bucket)) != tunable.digest
    ]
    return sorted(found, key=lambda entrant: entrant.tunable.rank)


def _source(entry: Entry | None) -> str | None:
    return None if entry is None else entry.get("source")


def _next_ready(waiting: Sequence[Entrant], compilers: Compilers, seconds: float) -> Entrant | None:
    """The first that is compiled; None where none is in time, or none is left."""

    def ready() -> Iterator[Entrant]:
        return (entrant for entrant in waiting if entrant.is_compiled(compilers))

    if waiting:
        compilers.wait(lambda: any(ready()), seconds)
    return next(ready(), None)


class Refusals:
    """Why candidates are left out before they run; what several buckets share is told once.

    Args:
        outcomes: of compiling, by what is compiled.
        faults: trials that are not made again.
    """

    def __init__(self, outcomes: Mapping[str, Outcome], faults: Sequence[Fault] = ()) -> None:
        self._outcomes, self._faults = outcomes, faults
        self._told: set[str] = set()

    def of(self, entrant: Entrant) -> tuple[list[Configuration], list[str]]:
        """The candidates that take part, and notes on the others."""
        faults = [fault for fault in self._faults if _is_about(fault, entrant.tunable)]
        usable, notes = [], [str(fault) for fault in faults]
        faulty = [fault.configuration for fault in faults]
        if None in faulty:
            return [], notes
        for configuration, codes in entrant.codes:
            if configuration is None:
                # Inputs that cannot be made are told by making them.
                continue
            reasons = {code: _refusal(self._outcomes[code]) for code in codes}
            found = {code: reason for code, reason in reasons.items() if reason}
            if not found and configuration not in faulty:
                usable.append(configuration)
            for code, reason in found.items():
                if code not in self._told:
                    self._told.add(code)
                    notes.append(f"{entrant.name} {configuration}: {reason}")
        return usable, notes


def _is_about(fault: Fault, tunable: Tunable) -> bool:
    """Is it one of this bucket, and of this source of the kernel?"""
    bucket = (tunable.kernel, tunable.bucket, tunable.digest)
    return (fault.kernel, fault.bucket, fault.source) == bucket


def _refusal(outcome: Outcome) -> str:
    """Why what was compiled is not launched; empty where it may be."""
    if isinstance(outcome, str):
        return outcome
    return f"{outcome['spills']} spills" if outcome["spills"] else ""


def _multiprocessors() -> int | None:
    """Those of the GPU that measures."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

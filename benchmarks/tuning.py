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
                                         configuration on them once
    rank: int                            lower ones come first, where time is short
    digest: str                          of the kernel's source

`fastgrow.kernels.tunable.Tunable` is such an object. `build` runs in worker processes on all cores:
it leaves the result in Triton's cache on disk, where the launch finds it. Candidates that spill, do
not compile or do not run are left out; the others are timed interleaved, on the same inputs, which
can take gigabytes. The clock is read before each call. A bucket whose time is over is decided
between the candidates that were timed so far, if the default is one of them. The table that
results:

    {"schema": 1, "device": …, "capability": 90, "triton": …, "entries": {
        "attention_forward": {"bf16/D=32/T=4096": {"configuration": {…}, "median_ms": …,
            "default_ms": …, "candidates": 12, "left_out": 3, "source": …}}}}
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from benchmarks.clock import Clock
from benchmarks.compiling import Compilers, Configuration, Job, Outcome, listed, told
from benchmarks.interleave import order
from benchmarks.summary import quantile

SCHEMA = 1
# Of timing all candidates in turn; the first ones are each candidate's own.
ROUNDS, FIRST_ROUNDS = 25, 3

Entry = dict[str, Any]


class Tunable(Protocol):
    """A kernel in one bucket, as described above."""

    kernel: str
    bucket: str
    candidates: Sequence[Configuration]
    rank: int
    digest: str

    def codes(self, configuration: Configuration | None) -> list[str]: ...

    def build(
        self, configuration: Configuration | None, only: str | None = None
    ) -> dict[str, int]: ...

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
    first_rank: int | None = None,
    known: Mapping[str, Mapping[str, Entry]] | None = None,
    on_entry: Callable[[str, str, Entry], None] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The table's entries, and what was left out; stops when the time is over.

    A bucket is measured as soon as its candidates are compiled, which those of the later ones are
    meanwhile.

    Args:
        first_rank: leave out buckets of a higher rank.
        known: entries by kernel and bucket; they are returned too, and not measured again.
        on_entry: called with kernel, bucket and entry as soon as a bucket is measured.
    """
    from fastgrow.kernels.ahead import compilations
    from fastgrow.kernels.multiprocessors import assumed

    end = now() + seconds
    entries: dict[str, dict[str, Entry]] = {k: dict(v) for k, v in (known or {}).items()}
    notes: list[str] = []
    processors = _multiprocessors()
    with assumed(processors), Compilers(processors) as compilers:
        waiting: list[Entrant] = []
        for entrant in entrants(modules, capability, first_rank, entries):
            try:
                entrant.add_to(compilers)
                waiting.append(entrant)
            except Exception as error:
                notes.append(f"{entrant.name} is not tuned: {told(error)}")
        refusals = Refusals(compilers.outcomes)
        with compilations() as compiled:
            while (ready := _next_ready(waiting, compilers, end - now())) and now() < end:
                waiting.remove(ready)
                usable, refused = refusals.of(ready)
                notes += refused
                entry, said = _measured(ready.tunable, usable, clock, lambda: now() >= end)
                notes += [f"{ready.name} {what}" for what in said]
                if entry is not None:
                    kernel, bucket = ready.tunable.kernel, ready.tunable.bucket
                    entries.setdefault(kernel, {})[bucket] = entry
                    if on_entry is not None:
                        on_entry(kernel, bucket, entry)
        late = [entrant.name for entrant in waiting if not entrant.is_compiled(compilers)]
    missed = [entrant.name for entrant in waiting if entrant.name not in late]
    if compiled:
        counts = ", ".join(f"{name} {count}" for name, count in Counter(compiled).items())
        notes.append(f"compiled again while candidates were measured: {counts}")
    if late:
        notes.append(f"not compiled in time: {', '.join(late)}")
    if missed:
        notes.append(f"no time left for {', '.join(missed)}")
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
    """Why candidates are left out before they run; what several buckets share is told once."""

    def __init__(self, outcomes: Mapping[str, Outcome]) -> None:
        self._outcomes = outcomes
        self._told: set[str] = set()

    def of(self, entrant: Entrant) -> tuple[list[Configuration], list[str]]:
        """The candidates that take part, and notes on the others."""
        usable, notes = [], []
        for configuration, codes in entrant.codes:
            if configuration is None:
                # Inputs that cannot be made are told by making them.
                continue
            reasons = {code: _refusal(self._outcomes[code]) for code in codes}
            found = {code: reason for code, reason in reasons.items() if reason}
            if not found:
                usable.append(configuration)
            for code, reason in found.items():
                if code not in self._told:
                    self._told.add(code)
                    notes.append(f"{entrant.name} {configuration}: {reason}")
        return usable, notes


def _refusal(outcome: Outcome) -> str:
    """Why what was compiled is not launched; empty where it may be."""
    if isinstance(outcome, str):
        return outcome
    return f"{outcome['spills']} spills" if outcome["spills"] else ""


def _measured(
    tunable: Tunable,
    usable: Sequence[Configuration],
    clock: Clock,
    is_over: Callable[[], bool],
) -> tuple[Entry | None, list[str]]:
    """The tunable's entry, None where there is none, and what has to be said of it."""
    if not usable:
        return None, ["is not tuned: every candidate is refused"]
    said: list[str] = []
    running: list[Contender] = []
    reached = 0
    try:
        launch = tunable.launcher()
        for candidate in usable:
            if is_over():
                break
            reached += 1
            try:
                running.append(_started(launch, candidate, clock))
            except Exception as error:
                said.append(f"{candidate}: {told(error)}")
        rounds = _in_turn(running, clock, is_over)
    except Exception as error:
        # Out of memory, say: the other tunables may have less to hold.
        return None, [*said, f"is not tuned: {told(error)}"]
    if reached < len(usable) or rounds < ROUNDS:
        so_far = f"{reached} of {len(usable)} candidates, {rounds} of {ROUNDS} rounds"
        if not any(c.configuration == tunable.candidates[0] for c in running):
            return None, [*said, f"is not tuned: time was over before the default ({so_far})"]
        said.append(f"time was over: {so_far}")
    if not running:
        return None, [*said, "is not tuned: no candidate runs"]
    return _fastest(tunable, running), said


@dataclass
class Contender:
    """A candidate that runs, and its times so far in seconds."""

    configuration: Configuration
    run: Callable[[], object]
    samples: list[float]


def _started(
    launch: Callable[[Configuration], object], candidate: Configuration, clock: Clock
) -> Contender:
    """Run a candidate for the first time, and then time it alone."""
    run = functools.partial(launch, candidate)
    run()
    return Contender(candidate, run, [clock.seconds(run) for _ in range(FIRST_ROUNDS)])


def _in_turn(running: Sequence[Contender], clock: Clock, is_over: Callable[[], bool]) -> int:
    """Time all in rounds, so that what disturbs the machine disturbs them alike; how many."""
    names = [str(i) for i in range(len(running))]
    for round_ in range(FIRST_ROUNDS, ROUNDS):
        for name in order(names, round_):
            if is_over():
                return round_
            contender = running[int(name)]
            contender.samples.append(clock.seconds(contender.run))
    return ROUNDS


def _fastest(tunable: Tunable, running: Sequence[Contender]) -> Entry:
    """The best by its median time; the first candidate of all is the default."""
    medians = [quantile(contender.samples, 0.5) * 1e3 for contender in running]
    best = min(range(len(running)), key=medians.__getitem__)
    has_default = running[0].configuration == tunable.candidates[0]
    count = len(tunable.candidates)
    return {
        "configuration": running[best].configuration,
        "median_ms": medians[best],
        "default_ms": medians[0] if has_default else None,
        "candidates": count,
        "left_out": count - len(running),
        "source": tunable.digest,
    }


def _multiprocessors() -> int | None:
    """Those of the GPU that measures."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

"""One tunable's candidates on the device: each is run, compared with the first, and timed.

At first each runs once. Other tiles change the order of sums and nothing else: a candidate whose
result is not that of the first one that runs, the default where it does, is left out
(`fastgrow.kernels.agreement`). Those that are left are timed interleaved on the same inputs. What
these leave in the cache no launch in a model would find there, so other memory is written before
each, twice what the cache holds.

Which candidate comes next is told before it does: it may end the process, or never return.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.clock import Clock, Run
from benchmarks.compiling import Configuration, told
from benchmarks.interleave import order
from benchmarks.measure import DeviceLost, is_lost
from benchmarks.summary import quantile

# Of timing all candidates in turn; the first ones are each candidate's own.
ROUNDS, FIRST_ROUNDS = 25, 3

Entry = dict[str, Any]
T = TypeVar("T")


class Tunable(Protocol):
    """A kernel in one bucket, as benchmarks/tuning.py describes it."""

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


@dataclass(frozen=True)
class Trial:
    """A launch of a candidate; without a configuration, the making of its bucket's inputs.

    Args:
        source: digest of the kernel's source.
    """

    kernel: str
    bucket: str
    source: str
    configuration: Configuration | None


class Bench:
    """Where candidates are measured, and until when.

    Args:
        is_over: whether there is no time left.
        on_trial: told of each trial before it is made.
    """

    def __init__(
        self,
        clock: Clock,
        device: torch.device,
        is_over: Callable[[], bool],
        on_trial: Callable[[Trial], None],
    ) -> None:
        self._clock, self._device = clock, device
        self.is_over, self._on_trial = is_over, on_trial
        self._scratch = torch.empty(2 * clock.cache_bytes, dtype=torch.uint8, device=device)

    @contextlib.contextmanager
    def trial(self, trial: Trial) -> Iterator[None]:
        """Within this a launch is made.

        Raises:
            DeviceLost: nothing runs on the device any more.
        """
        self._on_trial(trial)
        try:
            yield
        except Exception as error:
            if is_lost(self._device):
                raise DeviceLost(told(error)) from error
            raise

    def done(self, call: Callable[[], T]) -> T:
        """What a call returns, once the device has run what it launched."""
        result = call()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result

    def seconds(self, run: Run, name: str) -> float:
        """Time a launch whose inputs are not in the cache."""

        def prepared() -> Run:
            self._scratch.zero_()
            return run

        return self._clock.seconds(prepared(), name, prepared)


def measured(
    tunable: Tunable, usable: Sequence[Configuration], bench: Bench
) -> tuple[Entry | None, list[str]]:
    """The tunable's entry, None where there is none, and what has to be said of it.

    Raises:
        DeviceLost: nothing runs on the device any more.
    """
    if not usable:
        return None, ["is not tuned: every candidate is refused"]
    measurement = _Measurement(tunable, usable, bench)
    try:
        return measurement.entry(), measurement.said
    except DeviceLost:
        raise
    except Exception as error:
        # Out of memory, say: the other tunables may have less to hold.
        return None, [*measurement.said, f"is not tuned: {told(error)}"]


@dataclass
class _Contender:
    """A candidate that takes part, and its times so far in seconds."""

    configuration: Configuration
    run: Run
    name: str
    samples: list[float] = field(default_factory=list)


class _Measurement:
    """Of one tunable.

    Attributes:
        said: what has to be said of it so far.
    """

    def __init__(self, tunable: Tunable, usable: Sequence[Configuration], bench: Bench) -> None:
        self._tunable, self._usable, self._bench = tunable, usable, bench
        self.said: list[str] = []
        self._left_out: list[Configuration] = []

    def entry(self) -> Entry | None:
        with self._trial(None):
            launch = self._bench.done(self._tunable.launcher)
        running = self._started(self._agreeing(launch))
        rounds = self._in_turn(running)
        reached = len(self._left_out) + len(running)
        if reached < len(self._usable) or rounds < ROUNDS:
            so_far = f"{reached} of {len(self._usable)} candidates, {rounds} of {ROUNDS} rounds"
            if not any(c.configuration == self._tunable.candidates[0] for c in running):
                self.said.append(f"is not tuned: time was over before the default ({so_far})")
                return None
            self.said.append(f"time was over: {so_far}")
        if not running:
            self.said.append("is not tuned: no candidate runs")
            return None
        return _fastest(self._tunable, running)

    def _agreeing(self, launch: Callable[[Configuration], object]) -> list[_Contender]:
        """Those that run and compute what the first of them does."""
        # Not at the top of this file: what is tuned needs Triton, and this suite does not.
        from fastgrow.kernels.agreement import Reference

        reference = Reference()
        agreeing: list[_Contender] = []
        for i, candidate in enumerate(self._usable):
            if self._bench.is_over():
                break
            name = f"{self._tunable.kernel} {self._tunable.bucket} {i}"
            contender = _Contender(candidate, functools.partial(launch, candidate), name)
            with self._attempt(candidate):
                difference = reference.difference(self._bench.done(contender.run))
                if difference:
                    first = agreeing[0].configuration
                    self._leave_out(candidate, f"is not what {first} computes: {difference}")
            if candidate not in self._left_out:
                agreeing.append(contender)
        return agreeing

    def _started(self, agreeing: Sequence[_Contender]) -> list[_Contender]:
        """Time each by itself; a bucket whose time is over then can be decided by these times."""
        running: list[_Contender] = []
        for contender in agreeing:
            if self._bench.is_over():
                break
            with self._attempt(contender.configuration):
                for _ in range(FIRST_ROUNDS):
                    self._time(contender)
            if contender.configuration not in self._left_out:
                running.append(contender)
        return running

    def _in_turn(self, running: Sequence[_Contender]) -> int:
        """Time all in rounds, so that what disturbs the machine disturbs them alike; how many."""
        by_name = {contender.name: contender for contender in running}
        for round_ in range(FIRST_ROUNDS, ROUNDS):
            for name in order(list(by_name), round_):
                if self._bench.is_over():
                    return round_
                with self._trial(by_name[name].configuration):
                    self._time(by_name[name])
        return ROUNDS

    def _time(self, contender: _Contender) -> None:
        contender.samples.append(self._bench.seconds(contender.run, contender.name))

    @contextlib.contextmanager
    def _attempt(self, candidate: Configuration) -> Iterator[None]:
        """A trial; what goes wrong in it leaves the candidate out."""
        try:
            with self._trial(candidate):
                yield
        except DeviceLost:
            raise
        except Exception as error:
            self._leave_out(candidate, told(error))

    def _trial(self, candidate: Configuration | None) -> contextlib.AbstractContextManager[None]:
        tunable = self._tunable
        trial = Trial(tunable.kernel, tunable.bucket, tunable.digest, candidate)
        return self._bench.trial(trial)

    def _leave_out(self, candidate: Configuration, why: str) -> None:
        self._left_out.append(candidate)
        self.said.append(f"{candidate}: {why}")


def _fastest(tunable: Tunable, running: Sequence[_Contender]) -> Entry:
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

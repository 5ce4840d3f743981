"""Run, check and time the candidate configurations of one tunable kernel on the device.

First, each candidate runs once. Different tiles may only change the order of sums: a candidate is
excluded if its result differs from that of the first candidate that runs, normally the default
(`fastgrow.kernels.agreement`). The remaining candidates are timed interleaved on the same inputs.
In a model, a launch does not find its inputs in the cache, so before each launch other memory of
twice the cache's size is written.

Each candidate is reported before it runs, because it may end the process or never return.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.clock import Clock, Run
from benchmarks.compiling import Configuration, error_line
from benchmarks.interleave import order
from benchmarks.measure import DeviceLost, is_lost
from benchmarks.summary import quantile

# Rounds of timing: in all, and those in which a candidate is timed alone before the others join.
ROUNDS, FIRST_ROUNDS = 25, 3

Entry = dict[str, Any]
T = TypeVar("T")


class Tunable(Protocol):
    """A kernel in one bucket, as specified in benchmarks/tuning.py."""

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
    """A launch of a candidate.

    Args:
        kernel: name of the kernel.
        bucket: bucket of dtype and shape.
        source: digest of the kernel's source.
        configuration: the candidate's configuration; None for creating the bucket's inputs.
    """

    kernel: str
    bucket: str
    source: str
    configuration: Configuration | None


class Bench:
    """The device on which candidates are measured, with its clock and time limit.

    Args:
        clock: clock that measures the device.
        device: device to measure on.
        is_over: returns whether the time is used up.
        on_trial: called with each trial before it is launched.
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
        """Context manager around the launch of a trial.

        Raises:
            DeviceLost: the device can run nothing any more.
        """
        self._on_trial(trial)
        try:
            yield
        except Exception as error:
            if is_lost(self._device):
                raise DeviceLost(error_line(error)) from error
            raise

    def done(self, call: Callable[[], T]) -> T:
        """Return a call's result after the device has finished what the call launched."""
        result = call()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result

    def seconds(self, run: Run, name: str) -> float:
        """Return the seconds of a launch whose inputs are not in the cache."""

        def prepared() -> Run:
            self._scratch.zero_()
            return run

        return self._clock.seconds(prepared(), name, prepared)


def measured(
    tunable: Tunable, usable: Sequence[Configuration], bench: Bench
) -> tuple[Entry | None, list[str]]:
    """Measure a tunable.

    Returns:
        The entry for the tuning table, None if there is none, and notes on the measurement.

    Raises:
        DeviceLost: the device can run nothing any more.
    """
    if not usable:
        return None, ["is not tuned: every candidate is rejected"]
    measurement = _Measurement(tunable, usable, bench)
    try:
        return measurement.entry(), measurement.notes
    except DeviceLost:
        raise
    except Exception as error:
        # For example out of memory: other tunables may need less.
        return None, [*measurement.notes, f"is not tuned: {error_line(error)}"]


@dataclass
class _Contender:
    """A candidate that is timed, and its times so far in seconds."""

    configuration: Configuration
    run: Run
    name: str
    samples: list[float] = field(default_factory=list)


class _Measurement:
    """The measurement of one tunable.

    Attributes:
        notes: notes on the measurement so far.
    """

    def __init__(self, tunable: Tunable, usable: Sequence[Configuration], bench: Bench) -> None:
        self._tunable, self._usable, self._bench = tunable, usable, bench
        self.notes: list[str] = []
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
                self.notes.append(f"is not tuned: time was over before the default ({so_far})")
                return None
            self.notes.append(f"time was over: {so_far}")
        if not running:
            self.notes.append("is not tuned: no candidate runs")
            return None
        return _fastest(self._tunable, running)

    def _agreeing(self, launch: Callable[[Configuration], object]) -> list[_Contender]:
        """Return the candidates that run and compute the same as the first of them."""
        # Imported here because it needs Triton, which this suite does not otherwise need.
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
                    self._leave_out(candidate, f"differs from the result of {first}: {difference}")
            if candidate not in self._left_out:
                agreeing.append(contender)
        return agreeing

    def _started(self, agreeing: Sequence[_Contender]) -> list[_Contender]:
        """Time each candidate alone; if time runs out later, these times decide the bucket."""
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
        """Time all candidates in rounds, so that other load affects them equally.

        Returns:
            The number of rounds.
        """
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
        """Context manager around a trial; an error in it excludes the candidate."""
        try:
            with self._trial(candidate):
                yield
        except DeviceLost:
            raise
        except Exception as error:
            self._leave_out(candidate, error_line(error))

    def _trial(self, candidate: Configuration | None) -> contextlib.AbstractContextManager[None]:
        tunable = self._tunable
        trial = Trial(tunable.kernel, tunable.bucket, tunable.digest, candidate)
        return self._bench.trial(trial)

    def _leave_out(self, candidate: Configuration, why: str) -> None:
        self._left_out.append(candidate)
        self.notes.append(f"{candidate}: {why}")


def _fastest(tunable: Tunable, running: Sequence[_Contender]) -> Entry:
    """Return the entry of the candidate with the lowest median time."""
    medians = [quantile(contender.samples, 0.5) * 1e3 for contender in running]
    best = min(range(len(running)), key=medians.__getitem__)
    # A tunable's first candidate is the default.
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

"""Measure one case: check and warm up each contender, time all interleaved, measure memory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch._dynamo
from torch import Tensor

from benchmarks.case import DTYPES, Case, Refused, shape_text
from benchmarks.clock import Clock
from benchmarks.contenders import COMPILE_MODES, KINDS, Contender, contenders
from benchmarks.correctness import Truth, Verdict, judge, random_gradients, truth_of
from benchmarks.interleave import Limits, Samples, Step, input_sets, interleaved, step_of
from benchmarks.memory import memory_of_others, peak_bytes
from benchmarks.ratios import with_ratios
from benchmarks.results import Row
from benchmarks.summary import timing
from fastgrow.errors import FastgrowError

# Assumed seconds of a compilation before the first one is measured.
FIRST_GUESS_OF_COMPILING = 15.0
# Prefix of the status of a contender that a longer run would measure.
SKIPPED = "skipped"
# Memory of other processes above which out-of-memory errors are blamed on them; their contexts
# alone need less.
MANY_BYTES = 8 << 30


class DeviceLost(Exception):
    """Raised after an illegal access, when this process can run nothing on the device any more."""


class Budget:
    """The time limit of a run in seconds, and the time spent compiling so far."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds
        self.seconds = seconds
        self.compiling = FIRST_GUESS_OF_COMPILING
        self.spent_compiling = 0.0

    def compiled(self, seconds: float) -> None:
        """Note the time of a compilation; the next one is assumed to take as long."""
        self.compiling = seconds
        self.spent_compiling += seconds

    def left(self) -> float:
        return self._end - self._now()

    def allows_compiling(self, reserved: float) -> bool:
        """Whether there is time to compile once more and still have `reserved` seconds."""
        return self.left() - reserved > self.compiling


@dataclass(frozen=True)
class Settings:
    """How a run measures each case.

    Args:
        against: kinds of contenders (`benchmarks.contenders.KINDS`).
        seconds: time for one case's rounds.
        min_rounds: minimum number of rounds, even if the time is over.
        input_bytes: maximum size of a case's input sets in bytes.
        is_compiled: returns whether another process that shares the caches has already compiled a
            contender; such a contender is run even if the budget is used up.
        may_compile: whether other contenders may be compiled if the budget allows it.
    """

    against: Sequence[str] = KINDS
    seconds: float = 2.0
    min_rounds: int = 5
    input_bytes: int = 1 << 30
    is_compiled: Callable[[Case, Contender], bool] = lambda case, contender: False
    may_compile: bool = True


@dataclass(frozen=True)
class Ready:
    """A contender that has run once, and the result of its check (None: not checked)."""

    step: Step
    verdict: Verdict | None


def measure(
    case: Case, settings: Settings, clock: Clock, budget: Budget, *, reserved: float = 0.0
) -> list[Row]:
    """Measure a case and return its rows; the row of a contender that cannot run states why.

    Args:
        case: the case.
        settings: settings of the run.
        clock: clock of the device.
        budget: time limit of the run.
        reserved: seconds of the budget that the following cases will need.
    """
    # Beyond its recompile limit, dynamo would silently run eager code.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=64):
        rows = _measure(case, settings, clock, budget, reserved)
    if any(row.contender in COMPILE_MODES and row.status == "ok" for row in rows):
        # Discard this case's graphs before the next case.
        torch._dynamo.reset()
    return rows


def _measure(
    case: Case, settings: Settings, clock: Clock, budget: Budget, reserved: float
) -> list[Row]:
    field = contenders(case, settings.against)
    gradients: tuple[Tensor, ...] = ()
    try:
        sets = input_sets(case, clock, settings.input_bytes)
        truth = truth_of(case)
        if case.pass_ != "forward":
            gradients = random_gradients(lambda inputs: case.family.call(inputs, None), sets[0])
    except torch.OutOfMemoryError:
        status = _out_of_memory(case)
        return [_refused(case, contender, contender.absent or status) for contender in field]
    ready: dict[str, Ready] = {}
    refusals: dict[str, str] = {}
    for contender in field:
        if contender.absent:
            refusals[contender.name] = contender.absent
            continue
        if contender.is_compiled and not settings.is_compiled(case, contender):
            if not settings.may_compile:
                refusals[contender.name] = f"{SKIPPED}: it is not compiled yet"
                continue
            if not budget.allows_compiling(reserved + settings.seconds):
                refusals[contender.name] = (
                    f"{SKIPPED}: not enough of {budget.seconds:.0f} s left to compile it"
                )
                continue
        step = step_of(case, contender.run, sets, gradients)
        outcome = _prepare(case, contender, step, truth, budget)
        if isinstance(outcome, Ready):
            ready[contender.name] = outcome
        else:
            refusals[contender.name] = outcome
    limits = Limits(settings.seconds, settings.min_rounds)
    samples = interleaved({n: r.step for n, r in ready.items()}, clock, limits, len(sets))
    device = torch.device(case.device)
    rows = []
    for contender in field:
        if contender.name in ready:
            entry = ready[contender.name]
            peak = peak_bytes(functools.partial(run_once, entry.step), device)
            rows.append(_row(case, contender, samples[contender.name], peak, entry.verdict))
        else:
            rows.append(_refused(case, contender, refusals[contender.name]))
    return with_ratios(rows, case.family.required(case) if device.type == "cuda" else ())


def _prepare(
    case: Case, contender: Contender, step: Step, truth: Truth, budget: Budget
) -> Ready | str:
    """Warm up and check a contender; return why if it cannot be measured."""
    start = budget.left()
    try:
        run_once(step)
        if contender.is_compiled:
            budget.compiled(start - budget.left())
        verdict = None
        # A compiled contender is not checked on another shape, as this would compile it again.
        if contender.role != "yardstick" and (
            not contender.is_compiled or case.family.checked(case.shape) == case.shape
        ):
            verdict = judge(case, contender.run, truth)
        run_once(step)
    except torch.OutOfMemoryError:
        return _out_of_memory(case)
    except FastgrowError as error:
        # The message begins with the operation and the override, which the row has already.
        return f"cannot run: {_first_line(error).rpartition('which cannot run: ')[2]}"
    except Refused as error:
        return f"refused: {_first_line(error)}"
    except Exception as error:
        if is_lost(torch.device(case.device)):
            raise DeviceLost(f"{contender.name}: {_first_line(error)}") from error
        # If an alternative fails in any way, the others are still measured.
        return f"failed: {type(error).__name__}: {_first_line(error)}"
    return Ready(step, verdict)


def _out_of_memory(case: Case) -> str:
    others = memory_of_others(torch.device(case.device))
    if others > MANY_BYTES:
        # Without the other processes there may be enough memory.
        return f"{SKIPPED}: out of memory; other processes use {others >> 30} GiB"
    return "failed: out of memory"


def run_once(step: Step) -> object:
    return step(0)()


def is_lost(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _refused(case: Case, contender: Contender, status: str) -> Row:
    return Row(
        op=case.family.name,
        shape=shape_text(case.shape),
        dtype=case.dtype,
        pass_=case.pass_,
        contender=contender.name,
        role=contender.role,
        status=status,
    )


def _row(
    case: Case, contender: Contender, samples: Samples, peak: int, verdict: Verdict | None
) -> Row:
    times = timing(samples.seconds)
    work = contender.work or case.family.work(case.shape, DTYPES[case.dtype].itemsize, case.pass_)
    return Row(
        op=case.family.name,
        shape=shape_text(case.shape),
        dtype=case.dtype,
        pass_=case.pass_,
        contender=contender.name,
        role=contender.role,
        status="ok",
        median_ms=times.median * 1e3,
        p20_ms=times.p20 * 1e3,
        p80_ms=times.p80 * 1e3,
        runs=times.runs,
        covered=samples.covered,
        peak_mib=peak / 2**20,
        correct=None if verdict is None else verdict.ok,
        # JSON has no infinity, and `problem` states what is not finite.
        error=verdict.error if verdict and math.isfinite(verdict.error) else None,
        problem="" if verdict is None else verdict.reason,
        checked="" if verdict is None else shape_text(case.family.checked(case.shape)),
        tflop_per_s=work.flops / times.median / 1e12 if work.flops else None,
        gb_per_s=work.bytes / times.median / 1e9 if work.bytes else None,
    )

"""Measure many cases within a time limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.case import Case
from benchmarks.machine import Machine, cpu_notes
from benchmarks.measure import Budget, Settings, measure
from benchmarks.results import Ceilings, Result, Row

OnCase = Callable[[list[Row], Ceilings], None]

# Assumed seconds of a case in addition to its rounds (inputs, reference, warm-up, memory), before
# the first case is measured.
FIRST_GUESS_OF_OVERHEAD = 2.0


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    budget: Budget,
    *,
    on_start: Callable[[Case], None] = lambda case: None,
    on_case: Callable[[list[Row]], None] = lambda rows: None,
) -> tuple[list[Row], list[str]]:
    """Measure the cases; return their rows, and notes on cases for which time ran out."""
    rows: list[Row] = []
    overheads = [FIRST_GUESS_OF_OVERHEAD]
    for i, case in enumerate(cases):
        left = len(cases) - i
        if budget.left() <= 0:
            note = f"{left} of {len(cases)} cases were not measured: no time left"
            return rows, [f"{note} of {budget.seconds:.0f} s"]
        overhead = sum(overheads) / len(overheads)
        seconds = min(settings.seconds, max(0.05, budget.left() / left - overhead))
        reserved = (left - 1) * (seconds + overhead)
        on_start(case)
        start, compiling = budget.left(), budget.spent_compiling
        shorter = dataclasses.replace(settings, seconds=seconds)
        found = measure(case, shorter, machine.clock, budget, reserved=reserved)
        spent = start - budget.left() - (budget.spent_compiling - compiling)
        overheads.append(max(0.0, spent - seconds))
        rows += found
        on_case(found)
    return rows, []


def run_suite(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    budget: Budget,
    command: str,
    *,
    on_case: OnCase = lambda rows, ceilings: None,
) -> Result:
    """Measure the ceilings, then the cases, and return one result."""
    ceilings = machine.ceilings()
    rows, notes = run_cases(
        cases, settings, machine, budget, on_case=lambda rows: on_case(rows, ceilings)
    )
    if machine.device.type == "cpu":
        notes = [*cpu_notes(machine.environment), *notes]
    return Result(command, machine.environment, ceilings, rows, notes)

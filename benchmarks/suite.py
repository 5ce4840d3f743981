"""A run over many cases within a budget of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.case import Case
from benchmarks.machine import CPU_NOTE, Machine
from benchmarks.measure import Budget, Settings, measure
from benchmarks.results import Result, Row

# What a case takes besides its rounds: inputs, the truth, warm-up and memory.
CASE_OVERHEAD = 1.5


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    budget: Budget,
    *,
    on_case: Callable[[Case, list[Row]], None] = lambda case, rows: None,
) -> tuple[list[Row], list[str]]:
    """Rows of all cases, and notes on what the budget left out."""
    rows: list[Row] = []
    for i, case in enumerate(cases):
        left = len(cases) - i
        if budget.left() <= 0:
            return rows, [f"{left} of {len(cases)} cases were not measured: no time left"]
        share = max(0.0, budget.left() / left - CASE_OVERHEAD)
        seconds = min(settings.seconds, max(0.1, share))
        reserved = (left - 1) * (seconds + CASE_OVERHEAD)
        now = dataclasses.replace(settings, seconds=seconds)
        found = measure(case, now, machine.clock, budget, reserved=reserved)
        rows += found
        on_case(case, found)
    return rows, []


def run_suite(
    cases: Sequence[Case],
    settings: Settings,
    machine: Machine,
    budget: Budget,
    command: str,
    *,
    on_case: Callable[[Case, list[Row]], None] = lambda case, rows: None,
) -> Result:
    """Ceilings first, then the cases, as one result."""
    ceilings = machine.ceilings()
    rows, notes = run_cases(cases, settings, machine, budget, on_case=on_case)
    if machine.device.type == "cpu":
        notes = [CPU_NOTE, *notes]
    return Result(command, machine.environment, ceilings, rows, notes)

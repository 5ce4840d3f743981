"""Measure the cost of combining K experts, in one command and at most six minutes.

It measures the loss from four heads, the operations on four experts' logits, and K from 1 to 16.
Compiling takes longest; the first and the last part are measured without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import scaling
from benchmarks.case import Case, select
from benchmarks.cases import families
from benchmarks.contenders import COMPILE_MODES
from benchmarks.machine import Machine, cpu_notes
from benchmarks.measure import Budget, Settings
from benchmarks.results import Result, Row
from benchmarks.suite import OnCase, run_cases

TOTAL_SECONDS = 345.0
AGAINST = ("eager", "compile", "library")
SCALING_SHARE = 0.2
SECONDS_A_CASE = 3.0
FOUR = {"K": 4, "N": 512, "V": 65536}
IN_BOTH_DTYPES = ("logit_mean-into", "logit_mean")
IN_FP32 = ("mean_cross_entropy", "mean_argmax", "mean_sample", "probability_mean_gather")
ENSEMBLE = "linear_cross_entropy-ensemble"
SCALED = ("logit_mean-into", "mean_cross_entropy")
SCALED_K = (1, 2, 4, 8, 16)


def ensemble(device: str, grid: str) -> list[Case]:
    """Return the cases of the loss from hidden states and heads."""
    chosen = families([ENSEMBLE])
    return select(chosen, device=device, grid=grid, dtypes=["fp32"], passes=["forward"])


def four_experts(device: str, grid: str) -> list[Case]:
    """Return the cases of operations on the logits of four experts; grid `tiny` is for tests."""
    shapes = [] if grid == "tiny" else [FOUR]
    cases = []
    for names, dtypes in ((IN_BOTH_DTYPES, ("fp32", "bf16")), (IN_FP32, ("fp32",))):
        chosen = families(names)
        cases += select(
            chosen, device=device, grid=grid, dtypes=dtypes, passes=["forward"], shapes=shapes
        )
    return cases


def more_experts(device: str, grid: str) -> list[Case]:
    """Return the cases of each operation for several numbers of experts K."""
    rows = {"N": 4, "V": 64} if grid == "tiny" else {"N": 128, "V": 65536}
    return select(
        families(SCALED),
        device=device,
        grid=grid,
        dtypes=["fp32"],
        passes=["forward"],
        shapes=[{"K": K, **rows} for K in SCALED_K],
    )


def run_experts(
    machine: Machine,
    command: str,
    *,
    grid: str,
    against: Sequence[str] = AGAINST,
    seconds: float = TOTAL_SECONDS,
    on_case: OnCase = lambda rows, ceilings: None,
) -> Result:
    """Measure the cost of combining K experts; the result's notes list what time ran out for."""
    device = machine.device.type
    result = Result(command, machine.environment, machine.ceilings(), [])
    if device == "cpu":
        result.notes.extend(cpu_notes(machine.environment))

    def measured(cases: list[Case], against: Sequence[str], budget: Budget) -> None:
        settings = Settings(against, SECONDS_A_CASE)
        rows, left_out = run_cases(
            cases, settings, machine, budget, on_case=lambda shown: on_case(shown, result.ceilings)
        )
        result.rows.extend(rows)
        result.notes.extend(left_out)

    budget = Budget((1 - SCALING_SHARE) * seconds)
    rest = [kind for kind in against if kind not in COMPILE_MODES]
    measured(ensemble(device, grid), rest, budget)
    measured(four_experts(device, grid), against, budget)
    left = budget.left() + SCALING_SHARE * seconds
    measured(more_experts(device, grid), ("library",), Budget(left))
    return result


def scaled(result: Result) -> list[Row]:
    """Return the rows of the measurement over K, which are the last ones."""
    rows = [row for row in result.rows if row.op in SCALED]
    return [row for row in rows if scaling.without_k(row) == scaling.without_k(rows[-1])]

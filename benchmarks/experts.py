"""What combining K experts costs, in one command and at most six minutes.

K = 4 with everything a user would have instead, then K from 1 to 16 without torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import scaling
from benchmarks.case import Case, select
from benchmarks.cases import families
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


def four_experts(device: str, grid: str) -> list[Case]:
    """The cases of four experts; a grid other than the device's own is for tests."""
    tiny = grid == "tiny"
    shapes = [] if tiny else [FOUR]
    cases = []
    for names, dtypes in ((IN_BOTH_DTYPES, ("fp32", "bf16")), (IN_FP32, ("fp32",))):
        cases += select(
            families(names), device=device, grid=grid, dtypes=dtypes, passes=["forward"],
            shapes=shapes,
        )  # fmt: skip
    ensemble = select(
        families([ENSEMBLE]), device=device, grid=grid, dtypes=["fp32"], passes=["forward"]
    )
    # It is long: before the rest, whatever the budget.
    return [*ensemble, *cases]


def more_experts(device: str, grid: str) -> list[Case]:
    """One operation after the other, over K."""
    rows = {"N": 8, "V": 64} if grid == "tiny" else {"N": 128, "V": 65536}
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
    """Measure all of it; what there is no time for is told in the notes."""
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
    measured(four_experts(device, grid), against, budget)
    left = budget.left() + SCALING_SHARE * seconds
    measured(more_experts(device, grid), ("library",), Budget(left))
    return result


def scaled(result: Result) -> list[Row]:
    """The rows over K, which are the last."""
    rows = [row for row in result.rows if row.op in SCALED]
    return [row for row in rows if scaling.without_k(row) == scaling.without_k(rows[-1])]

"""What combining K experts costs, in one command and at most six minutes.

K = 4 with everything a user would have instead, then K from 1 to 16 without torch.compile.
"""

from __future__ import annotations

from benchmarks import scaling
from benchmarks.case import Case, select
from benchmarks.cases import families
from benchmarks.machine import Machine, cpu_notes
from benchmarks.measure import Budget, Settings
from benchmarks.results import Ceilings, Result, Row
from benchmarks.suite import OnCase, run_cases

TOTAL_SECONDS = 345.0
SCALING_SECONDS = 75.0
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
    seconds: float = TOTAL_SECONDS,
    on_case: OnCase = lambda rows, ceilings: None,
) -> Result:
    """Measure all of it; what there is no time for is told in the notes."""
    ceilings: Ceilings = machine.ceilings()
    device = machine.device.type
    budget = Budget(seconds - SCALING_SECONDS)
    rows: list[Row] = []
    notes = cpu_notes(machine.environment) if device == "cpu" else []
    for cases, against, time in (
        (four_experts(device, grid), ("eager", "compile", "library"), budget),
        (more_experts(device, grid), ("library",), None),
    ):
        settings = Settings(against, seconds=3.0)
        found, left_out = run_cases(
            cases,
            settings,
            machine,
            time or Budget(max(SCALING_SECONDS, SCALING_SECONDS + budget.left())),
            on_case=lambda shown: on_case(shown, ceilings),
        )
        rows += found
        notes += left_out
    return Result(command, machine.environment, ceilings, rows, notes)


def scaled(result: Result) -> list[Row]:
    """The rows over K."""
    shape = scaling.without_k
    last = [row for row in result.rows if row.op in SCALED]
    counts = {s: sum(shape(row) == s for row in last) for s in {shape(row) for row in last}}
    widest = max(counts, key=lambda s: counts[s], default="")
    return [row for row in last if shape(row) == widest]

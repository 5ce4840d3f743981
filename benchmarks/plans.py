"""Count a GPU's work on K experts' logits, to compare with measurements.

`python -m benchmarks plans` prints the table for some shapes that is in docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.case import DTYPES, Family, Shape, parse_shape
from benchmarks.cases import experts, logit_mean
from benchmarks.native_times import NATIVE
from benchmarks.results import Row
from fastgrow.ops.core.launch_plan import BYTES_PER_SECOND, Plan, launch_plan, seconds

FAMILIES = {f.name: f for f in (logit_mean.FAMILY, logit_mean.INTO, *experts.EXPERTS)}
# Bytes that a part of a row writes: a largest logit and a sum, or a candidate and its index.
LEFT_BYTES = 8
SHAPES: tuple[Shape, ...] = (
    {"K": 4, "N": 1, "V": 65536},
    {"K": 4, "N": 64, "V": 65536},
    {"K": 4, "N": 4096, "V": 65536},
    {"K": 4, "N": 4096, "V": 50257},
    {"K": 4, "N": 4096, "V": 256},
)
DTYPE = "bf16"
AT_BEST = f"at {BYTES_PER_SECOND / 1e12:g} TB/s"
HEADER = ("N × V", "operations", "rows a block", "parts of a row", "blocks", "moved", AT_BEST)


class Counted(NamedTuple):
    """Counted work of a case: the launch plan, its blocks, and the bytes that all launches move."""

    plan: Plan
    blocks: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.blocks:,} blocks, {self.moved}, {self.time} {AT_BEST}"

    @property
    def moved(self) -> str:
        return _in_units(self.bytes, {"GB": 1e9, "MB": 1e6, "kB": 1e3})

    @property
    def time(self) -> str:
        return _in_units(seconds(self.bytes), {"ms": 1e-3, "µs": 1e-6})


def counted(family: Family, shape: Shape, dtype: str, pass_: str) -> Counted:
    """Count the work of one of FAMILIES.

    The bytes are the minimum for the operation, the partial results that parts of rows write and
    read, and, for sampling, the part of a row that is read again.
    """
    K, N, V = (shape[name] for name in "KNV")
    itemsize = DTYPES[dtype].itemsize
    looks_for_most_likely = family.name in ("mean_top_k", "mean_sample-cut")
    plan = launch_plan("mean_top_k" if looks_for_most_likely else family.op, N, V, itemsize)
    left = LEFT_BYTES
    if looks_for_most_likely:
        left *= min(experts.TOP, V)
    elif family.op.startswith("probability_mean"):
        left *= K
    moved = int(family.work(shape, itemsize, pass_).bytes)
    if family.op != "logit_mean" and pass_ != "backward":
        # Partial results are written and read.
        moved += 2 * N * plan.parts * left
    if family.name == "mean_sample":
        moved += N * min(plan.length, V) * K * itemsize
    return Counted(plan, plan.blocks(N), moved)


def plan_text(row: Row) -> str:
    """Format the counted work of a row of `native` on a GPU; empty for a row without a plan."""
    family = FAMILIES.get(row.op)
    if family is None or row.contender != NATIVE or row.status != "ok":
        return ""
    return f"plan: {counted(family, parse_shape(row.shape), row.dtype, row.pass_)}"


def markdown() -> str:
    """Format the table of SHAPES; operations with equal numbers share a line."""
    lines: list[Sequence[str]] = [HEADER, ["---", "---", *["---:"] * (len(HEADER) - 2)]]
    for shape in SHAPES:
        names: dict[tuple[str, ...], list[str]] = {}
        for family in FAMILIES.values():
            for pass_ in family.passes:
                # The excluded ones differ from the others in the bytes only.
                if family.name != "logit_mean-into" and pass_ != "backward":
                    found = counted(family, shape, DTYPE, pass_)
                    plan, blocks = found.plan, f"{found.blocks:,}"
                    cells = (str(plan.rows_per_block), str(plan.parts), blocks)
                    with_gradients = " with gradients" if pass_ == "full" else ""
                    key = (*cells, found.moved, found.time)
                    names.setdefault(key, []).append(f"`{family.name}`{with_gradients}")
        size = f"{shape['N']:,} × {shape['V']:,}"
        lines += [[size, ", ".join(ops), *cells] for cells, ops in names.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_units(number: float, units: dict[str, float]) -> str:
    """Format with two digits, in the largest unit of which the number is at least a tenth."""
    unit, size = next(((u, s) for u, s in units.items() if number >= s / 10), [*units.items()][-1])
    value = number / size
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:#.2g} {unit}"

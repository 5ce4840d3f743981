"""Everything that a GPU machine is asked, in one command and at most ten minutes.

Correctness on the device, then tuning, then speeds; each operation is a part of its own. Parts are
kept in `parts/` of the output folder, so that a run that was stopped goes on where it was. What
there was no time for is told, and measured by a second run that is given more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results, tuning
from benchmarks.case import PASSES, Case, Family, select
from benchmarks.cases import FAMILIES
from benchmarks.contenders import KINDS
from benchmarks.device_tests import COUNTED, run_gpu_tests
from benchmarks.machine import Machine
from benchmarks.measure import Budget, Settings
from benchmarks.parts import Done, Part, run_parts
from benchmarks.results import Ceilings, Result, Row
from benchmarks.ship import TABLE, TESTED
from benchmarks.suite import run_cases
from fastgrow import _files
from fastgrow.kernels import tuned
from fastgrow.kernels.tuning_table import table_of

TOTAL_SECONDS = 600.0
CORRECTNESS_SECONDS = 120.0
TUNING_SECONDS = 150.0
# The rest is for speeds: of what is left at its turn an operation gets its share.
SPEED_SHARES = {"attention": 4.0, "linear_cross_entropy": 2.0, "growth_step": 2.0}
SECONDS_A_CASE = 1.0
AGAINST = KINDS
COMMAND = "python -m benchmarks gpu"
SHOWN = 20  # names of failed tests in a note
# What a file of tests is about, where its name does not say so.
OPERATIONS = {
    "test_decode_kernels.py": ("attention",),
    "test_linear_lse_kernels.py": ("linear_cross_entropy", "linear_lse_gather", "linear_kl"),
    "test_lora_kernels.py": ("lora_linear",),
    "test_norm_kernels.py": ("layer_norm", "rms_norm"),
}
# It is made of the other operations.
OF_ALL = "growth_step"
# What has to be the same for a part of an earlier run to stand.
KEY = ("device", "driver", "torch", "triton", "commit")


def run_gpu(
    machine: Machine,
    out: Path,
    families: Sequence[Family] = FAMILIES,
    *,
    grid: str = "gpu",
    seconds: float = TOTAL_SECONDS,
) -> Result:
    """Measure everything on this machine's GPU, resuming what `--out` holds already.

    Speeds are those with the configurations that the tuning has found, which `tuning.json` holds.
    """
    key = {name: machine.environment.get(name) for name in KEY}
    folder = out / "parts"
    preparations = [
        Part("correctness", run_gpu_tests, CORRECTNESS_SECONDS),
        Part("tuning", functools.partial(_tune, machine), TUNING_SECONDS),
    ]
    prepared = run_parts(preparations, folder, key, seconds)
    table = table_from(machine, prepared)
    in_use: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if table["entries"]:
        _files.write_json(out / TABLE, table)
        in_use = tuned.standing_in(table["device"], table_of(table))
    left = seconds - sum(part.seconds for part in prepared)
    # Speeds of another table are measured again.
    key["table"] = hashlib.sha256(json.dumps(table).encode()).hexdigest()
    with in_use:
        measured = run_parts(speeds(machine, families, grid), folder, key, left)
    return merge(machine, [*prepared, *measured])


def speeds(machine: Machine, families: Sequence[Family], grid: str) -> list[Part]:
    """A part for each operation, those with the largest share first."""
    parts = []
    for family in families:
        cases = select([family], device=machine.device.type, grid=grid, dtypes=["bf16"])
        # Where time ends early, the first shapes and the full pass are what is wanted most.
        shapes = list(family.grids[grid])
        cases.sort(key=lambda c: (shapes.index(c.shape), -PASSES.index(c.pass_)))
        run = functools.partial(_speeds, machine, cases)
        share = SPEED_SHARES.get(family.name, 1.0)
        parts.append(Part(f"speed-{family.name}", run, share=share))
    return sorted(parts, key=lambda part: -part.share)


def _tune(machine: Machine, seconds: float) -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"entries": {}, "notes": ["skipped: triton is not installed"]}
    modules = tuning.kernel_modules()
    if not modules:
        return {"entries": {}, "notes": ["skipped: no kernel lists configurations"]}
    return tuning.tune(modules, _capability(machine), machine.clock, seconds)


def _capability(machine: Machine) -> int:
    return int(str(machine.environment["capability"]).replace(".", ""))


def table_from(machine: Machine, prepared: Sequence[Done]) -> dict[str, Any]:
    """The file that the launchers read; without entries where nothing was tuned."""
    known = machine.environment
    tuning_part = next((part for part in prepared if part.name == "tuning" and part.is_done), None)
    entries = tuning_part.content["entries"] if tuning_part else {}
    return {
        "schema": tuning.SCHEMA,
        "device": known["device"],
        "capability": _capability(machine),
        "triton": known["triton"],
        "entries": entries,
    }


def _speeds(machine: Machine, cases: Sequence[Case], seconds: float) -> dict[str, Any]:
    """Ceilings and rows, measured together."""
    budget = Budget(seconds)
    ceilings = machine.ceilings()
    rows, notes = run_cases(cases, Settings(AGAINST, SECONDS_A_CASE), machine, budget)
    if not rows:
        # So that a later run takes it up again.
        raise RuntimeError("; ".join(notes) or "there are no cases")
    part = Result(COMMAND, machine.environment, ceilings, rows, notes)
    tree = results.as_json(part)
    return {name: tree[name] for name in ("ceilings", "rows", "notes")}


def merge(machine: Machine, done: Sequence[Done]) -> Result:
    """One result of all parts; a part without content becomes a note."""
    rows: list[Row] = []
    notes: list[str] = []
    ceilings = Ceilings()
    tests: dict[str, Any] = {"state": "not run"}
    for part in done:
        if not part.is_done:
            notes.append(f"{part.name}: {part.state}")
        elif part.name == "correctness":
            tests = part.content
            counts = [f"{tests[word]} {word}" for word in COUNTED if word in tests]
            notes.append(f"{TESTED}{', '.join([tests['state'], *counts])}")
            if tests["failures"]:
                shown = tests["failures"][:SHOWN]
                more = len(tests["failures"]) - len(shown)
                notes.append(f"red: {', '.join(shown)}{f' and {more} more' if more else ''}")
        elif part.name == "tuning":
            count = sum(map(len, part.content["entries"].values()))
            notes += [f"tuning: {count} entries, with which speeds were measured"]
            notes += part.content["notes"]
        else:
            ceilings = Ceilings(**part.content["ceilings"])
            rows += [results.row_of(row) for row in part.content["rows"]]
            notes += [f"{part.name}: {note}" for note in part.content["notes"]]
    rows = withheld_where_red(rows, tests)
    return Result(COMMAND, machine.environment, ceilings, rows, notes)


def withheld_where_red(rows: Sequence[Row], tests: dict[str, Any]) -> list[Row]:
    """No ratio for an operation that a failed test is about; none at all where one does not say."""
    if not tests["state"].startswith("failed"):
        return list(rows)
    operations = {row.op for row in rows}
    failures = tests.get("failures") or [""]
    red = set().union(*(_about(failure, operations) for failure in failures))
    reason = "tests on the device failed"
    return [
        dataclasses.replace(row, ratio=None, withheld=row.withheld or reason)
        if row.role != "library" and row.op in red
        else row
        for row in rows
    ]


def _about(failure: str, operations: set[str]) -> set[str]:
    """Those that a test is about, by its name or its file's; all where neither tells."""
    file = Path(failure.split("::")[0]).name
    known = OPERATIONS.get(file, ())
    bases = {op: op.split("-")[0] for op in operations}
    named = {op for op, base in bases.items() if base in failure or base in known}
    if not named and not known:
        return operations
    return named | ({OF_ALL} & operations)

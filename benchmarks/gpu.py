"""Everything that a GPU machine is asked, in one command and at most ten minutes.

Correctness on the device, then tuning, then speeds; each operation is a part of its own. Parts are
kept in `parts/` of the output folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results, tuning
from benchmarks.case import PASSES, Case, Family, select
from benchmarks.cases import FAMILIES
from benchmarks.contenders import KINDS
from benchmarks.machine import ROOT, Machine
from benchmarks.measure import Budget, Settings
from benchmarks.parts import Done, Part, run_parts
from benchmarks.results import Ceilings, Result, Row
from benchmarks.suite import run_cases
from fastgrow import _files

TOTAL_SECONDS = 600.0
CORRECTNESS_SECONDS = 120.0
TUNING_SECONDS = 150.0
# The rest is for speeds, a share for each operation.
SPEED_SHARES = {"attention": 4.0, "linear_cross_entropy": 2.0}
SECONDS_A_CASE = 1.0
AGAINST = KINDS
COMMAND = "python -m benchmarks gpu"
COUNTED = ("passed", "failed", "skipped", "error")
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
    """Measure everything on this machine's GPU, resuming what `--out` holds already."""
    key = {name: machine.environment.get(name) for name in KEY}
    done = run_parts(plan(machine, families, grid), out / "parts", key, seconds)
    tuned = next((part for part in done if part.name == "tuning" and part.is_done), None)
    if tuned is not None and tuned.content["entries"]:
        _files.write_json(out / "tuning.json", tuning_table(machine, tuned.content["entries"]))
    return merge(machine, done)


def plan(machine: Machine, families: Sequence[Family], grid: str) -> list[Part]:
    """The parts in order: correctness, tuning, then the operations."""
    kind = machine.device.type
    parts = [
        Part("correctness", CORRECTNESS_SECONDS, run_gpu_tests),
        Part("tuning", TUNING_SECONDS, functools.partial(_tune, machine)),
    ]
    rest = TOTAL_SECONDS - CORRECTNESS_SECONDS - TUNING_SECONDS
    shares = {family.name: SPEED_SHARES.get(family.name, 1.0) for family in families}
    for family in families:
        share = rest * shares[family.name] / sum(shares.values())
        cases = select([family], device=kind, grid=grid, dtypes=["bf16"])
        # Where time ends early, the first shapes and the full pass are what is wanted most.
        shapes = list(family.grids[grid])
        cases.sort(key=lambda c: (shapes.index(c.shape), -PASSES.index(c.pass_)))
        run = functools.partial(_speeds, machine, cases)
        parts.append(Part(f"speed-{family.name}", share, run))
    return parts


def run_gpu_tests(seconds: float) -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own."""
    tests = ROOT / "tests"
    if importlib.util.find_spec("pytest") is None:
        return {"state": "skipped: pytest is not installed"}
    if not tests.is_dir():
        return {"state": "skipped: the tests are not here"}
    # The project's options name plugins that a plain image lacks.
    options = ["-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=line"]
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"state": f"failed: not finished after {seconds:.0f} s"}
    return tests_outcome(run.returncode, run.stdout)


def tests_outcome(status: int, output: str) -> dict[str, Any]:
    """Counts from pytest's last line; its status 5 says that nothing was selected."""
    lines = output.strip().splitlines()
    summary = lines[-1] if lines else ""
    counts: dict[str, Any] = {
        word: int(n) for n, word in re.findall(rf"(\d+) ({'|'.join(COUNTED)})", summary)
    }
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    # Node ids alone: messages may hold paths of the machine.
    failures = [line.split(" ")[1] for line in failed][:20]
    if status == 5 or not counts.get("passed"):
        state = "failed" if failures else "skipped: no test of the mark gpu ran"
    else:
        state = "passed" if status == 0 else "failed"
    return {"state": state, **counts, "failures": failures}


def _tune(machine: Machine, seconds: float) -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"entries": {}, "notes": ["skipped: triton is not installed"]}
    modules = tuning.kernel_modules()
    if not modules:
        return {"entries": {}, "notes": ["skipped: no kernel lists configurations"]}
    return tuning.tune(modules, _capability(machine), machine.clock, seconds)


def _capability(machine: Machine) -> int:
    return int(str(machine.environment["capability"]).replace(".", ""))


def tuning_table(machine: Machine, entries: dict[str, Any]) -> dict[str, Any]:
    """The file that the launchers read."""
    known = machine.environment
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
            notes.append(f"tests on the device: {', '.join([tests['state'], *counts])}")
        elif part.name == "tuning":
            count = sum(map(len, part.content["entries"].values()))
            notes += [f"tuning: {count} entries", *part.content["notes"]]
        else:
            ceilings = Ceilings(**part.content["ceilings"])
            rows += [results.row_of(row) for row in part.content["rows"]]
            notes += [f"{part.name}: {note}" for note in part.content["notes"]]
    rows = withheld_where_red(rows, tests)
    return Result(COMMAND, machine.environment, ceilings, rows, notes)


def withheld_where_red(rows: Sequence[Row], tests: dict[str, Any]) -> list[Row]:
    """No ratio for an operation that a failed test names; none at all if they name none."""
    if not tests["state"].startswith("failed"):
        return list(rows)
    text = " ".join(tests.get("failures", []))
    operations = {row.op for row in rows}
    named = {op for op in operations if op.split("-")[0] in text} or operations
    reason = "tests on the device failed"
    return [
        dataclasses.replace(row, ratio=None, withheld=row.withheld or reason)
        if row.role != "library" and row.op in named
        else row
        for row in rows
    ]

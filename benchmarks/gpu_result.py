"""Make the result file and the tuning table from the record of a GPU machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import rehearsal
from benchmarks.device_tests import COUNTED, outcome
from benchmarks.native_times import native_times
from benchmarks.record import Line, Record
from benchmarks.results import Ceilings, Result, Row, row_of
from benchmarks.ship import TESTED
from fastgrow.kernels import tuned

COMMAND = "python -m benchmarks gpu"
SHOWN = 20  # maximum number of failed tests named in a note
# The operations that a test file is about, if its name does not contain them.
OPERATIONS = {
    "test_decode_kernels.py": ("attention",),
    "test_linear_lse_kernels.py": ("linear_cross_entropy", "linear_lse_gather", "linear_kl"),
    "test_lora_kernels.py": ("lora_linear",),
    "test_norm_kernels.py": ("layer_norm", "rms_norm"),
    "test_rope_kernel.py": ("attention",),
}
# The case that consists of the other operations.
OF_ALL = "growth_step"
# Tests of runs, models and ensembles: a failure does not show that a particular operation is wrong,
# and each operation is checked when it is timed.
OF_MODELS = "tests/gpu/"


def result_of(record: Record, key: str, digests: Mapping[str, str], of_everything: str) -> Result:
    """Return all results of a machine and the present code.

    Args:
        record: the record.
        key: key of the machine.
        digests: digests of each operation's code.
        of_everything: digest of all code.
    """
    machine = _machine(record, key)
    environment, ceilings = machine["environment"], Ceilings(**machine["ceilings"])
    notes = [rehearsal.NOTE] if environment.get("device") == rehearsal.DEVICE else []
    rows: list[Row] = []
    of_other_code = 0
    for line in record.of("cell", key):
        if line["code"] in digests.values():
            rows += [row_of(row) for row in line["rows"]]
        else:
            of_other_code += 1
    if of_other_code:
        notes.append(f"{of_other_code} cases in the record are from other code and not used")
    if record.unused:
        notes.append(
            f"{record.unused} lines of the record are damaged or from another version and not used"
        )
    texts = {n["about"]: n["text"] for n in _current(record, "note", key, of_everything)}
    tests = _tests(record, key, of_everything, texts)
    notes += _notes_on(tests)
    notes += [growth_note(line["found"]) for line in _current(record, "growth", key, of_everything)]
    count = len(record.of("entry", key))
    if count:
        notes.append(f"tuning: {count} entries measured here")
    notes += [f"{about}: {text}" for about, text in texts.items() if text and about != "tests"]
    order = list(digests)
    rows.sort(key=lambda row: order.index(row.op) if row.op in order else len(order))
    return Result(COMMAND, environment, ceilings, withheld_where_red(rows, tests), notes)


def growth_note(found: dict[str, Any]) -> str:
    """Summarise a growth run; the record has all details."""
    text = f"growth of {found['config']}, stopped and resumed once: {found['state']}"
    for half in found.get("halves", []):
        speed, peak = half["tokens_per_second"], half.get("peak_memory_bytes")
        text += f"; {len(half['steps'])} steps"
        text += f", {speed:,.0f} tokens/s" if speed else ""
        text += (
            f", loss {half['first_loss']:.3f} to {half['last_loss']:.3f}" if half["steps"] else ""
        )
        text += f", peak {peak / 2**30:.1f} GiB" if peak else ""
    return text


def _machine(record: Record, key: str) -> Line:
    (line,) = record.of("machine", key)
    return line


def _current(record: Record, kind: str, key: str, of_everything: str) -> list[Line]:
    return [line for line in record.of(kind, key) if line["code"] == of_everything]


def _tests(
    record: Record, key: str, of_everything: str, texts: Mapping[str, str]
) -> dict[str, Any]:
    lines = _current(record, "test", key, of_everything)
    unfinished = texts.get("tests", "unfinished: only the smoke tests were run")
    found = outcome({line["test"]: line["outcome"] for line in lines}, unfinished)
    if not lines:
        found["state"] = texts.get("tests") or "not run"
    whys = {line["test"]: line.get("why", "") for line in lines}
    return found | {"whys": [whys[test] for test in found["failures"]]}


def _notes_on(tests: dict[str, Any]) -> list[str]:
    counts = [f"{tests[word]} {word}" for word in COUNTED if word in tests]
    notes = [f"{TESTED}{', '.join([tests['state'], *counts])}"]
    if tests["failures"]:
        failed = [
            f"{test} ({why})" if why else test
            for test, why in zip(tests["failures"], tests["whys"], strict=True)
        ]
        more = len(failed) - SHOWN
        suffix = f" and {more} more" if more > 0 else ""
        notes.append(f"failed tests: {', '.join(failed[:SHOWN])}{suffix}")
    return notes


def table_from(record: Record, key: str, rows: Sequence[Row] = ()) -> dict[str, Any]:
    """Return the tuning table for launches: the shipped table, updated with the measured entries.

    Args:
        record: the record.
        key: key of the machine.
        rows: rows of the result; without them, the entries about the extension are those shipped.
    """
    environment = _machine(record, key)["environment"]
    device = environment["device"]
    shipped = _shipped(tuned.path_of(device))
    entries, native = shipped.get("entries", {}), shipped.get("native", {})
    for line in record.of("entry", key):
        entries.setdefault(line["kernel"], {})[line["bucket"]] = line["entry"]
    for operation, of_keys in native_times(rows, environment.get("extension")).items():
        now = native.get(operation, {}) | of_keys
        native[operation] = {key: entry for key, entry in now.items() if entry is not None}
    return {
        "schema": tuned.SCHEMA,
        "device": device,
        "capability": int(environment["capability"].replace(".", "")),
        "triton": environment["triton"],
        "entries": entries,
        "native": {operation: of_keys for operation, of_keys in native.items() if of_keys},
    }


def _shipped(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def withheld_where_red(rows: Sequence[Row], tests: dict[str, Any]) -> list[Row]:
    """Remove the ratio of each operation that a failed test is about.

    If a failed test's operation is unknown, the ratios of all operations are removed.
    """
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
    """Return the operations that a test is about, by its name or file; all if they are unknown."""
    if failure.startswith(OF_MODELS):
        return {OF_ALL} & operations
    file = Path(failure.split("::")[0]).name
    known = OPERATIONS.get(file, ())
    bases = {op: op.split("-")[0] for op in operations}
    named = {op for op, base in bases.items() if base in failure or base in known}
    if not named and not known:
        return operations
    return named | ({OF_ALL} & operations)

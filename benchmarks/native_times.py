"""Make the entries on the extension of a tuning table (`fastgrow.kernels.tuned`) from a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.case import parse_shape
from benchmarks.contenders import OURS
from benchmarks.results import Row
from fastgrow.kernels import tuned
from fastgrow.ops import OPERATIONS
from fastgrow.ops.core import measured

NATIVE = f"{OURS} native"
# The automatic choice never runs a backward pass alone.
PASSES = ("forward", "full")


def native_times(
    rows: Sequence[Row], source: str | None
) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Return an entry for each operation with a `native` implementation and each key of the choice.

    The entry is from the cell, of any shape or variant, in which `native` is slowest relative to
    the others, so that `native` is chosen only if it is no slower in any cell. It is None if a cell
    has no ratio for `native`: it did not run or was not correct, tests of it failed, or an
    alternative has not been measured yet.

    Args:
        rows: rows of the run.
        source: source digest of the measured extension.
    """
    found: dict[str, dict[str, dict[str, Any] | None]] = {}
    by_cell = sorted(rows, key=lambda row: row.cell)
    for (op, shape, dtype, pass_), cell in itertools.groupby(by_cell, key=lambda row: row.cell):
        operation = op.partition("-")[0]
        known = OPERATIONS.get(operation)
        if known is None or "native" not in known.implementations:
            continue
        if pass_ not in PASSES or dtype not in tuned.NAMES.values():
            continue
        of_keys = found.setdefault(operation, {})
        key = measured.key(dtype, pass_, parse_shape(shape)["N"])
        entry = _entry(list(cell), source)
        of_keys[key] = _worse(of_keys[key], entry) if key in of_keys else entry
    return found


def _entry(cell: Sequence[Row], source: str | None) -> dict[str, Any] | None:
    native = next((row for row in cell if row.contender == NATIVE and row.ratio is not None), None)
    others = [
        (row.median_ms, row.contender)
        for row in cell
        if row.role in ("implementation", "library")
        and row.contender != NATIVE
        and row.median_ms is not None
        # Contenders compiled for the timed shape only are not checked (`correct` is None).
        and row.correct is not False
    ]
    if native is None or not others:
        return None
    other_ms, other = min(others)
    return {
        "native_ms": native.median_ms,
        "other_ms": other_ms,
        "other": other,
        "source": source,
    }


def _worse(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    if one is None or other is None:
        return None
    return max(one, other, key=lambda entry: entry["native_ms"] / entry["other_ms"])

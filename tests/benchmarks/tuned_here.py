"""Collects everything that `benchmarks.tuning` reports during a tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import tuning


def tuned_here(
    modules: list[str],
    capability: int,
    clock: Any,
    seconds: float,
    *,
    on_entry: Callable[[str, str, Any], None] = lambda kernel, bucket, entry: None,
    **options: Any,
) -> dict[str, Any]:
    """The entries, by kernel and bucket, and the notes."""
    entries: dict[str, dict[str, Any]] = {}
    notes: list[str] = []

    def keep(kernel: str, bucket: str, entry: Any) -> None:
        entries.setdefault(kernel, {})[bucket] = entry
        on_entry(kernel, bucket, entry)

    tuning.tune(modules, capability, clock, seconds, on_entry=keep, on_note=notes.append, **options)
    return {"entries": entries, "notes": notes}

"""What a run has found so far, one line of JSON each, on disk as soon as it is found.

    {"kind": "machine", "key": …, "environment": …, "ceilings": …}
    {"kind": "cell", "key": …, "code": …, "table": …, "rows": […]}
    {"kind": "test", "key": …, "code": …, "test": "tests/…::test_it", "outcome": "passed"}
    {"kind": "entry", "key": …, "kernel": "attention_forward", "bucket": …, "entry": …}
    {"kind": "note", "key": …, "about": "tuning", "text": …}
    {"kind": "growth", "key": …, "code": …, "found": …}

A line that was cut off by a kill is dropped when the file is read, and overwritten by the next. Of
several lines about one thing the last one counts. `key` names the machine and `code` the code
(`benchmarks.code`) that a line is about: lines of another machine or other code stay in the file
and are not used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
# What has to be the same for a number to be comparable.
KEY = ("device", "driver", "torch", "triton")
# For each kind, what tells one thing from another.
IDENTITY = {
    "machine": (),
    "cell": ("cell",),
    "test": ("test",),
    "entry": ("kernel", "bucket"),
    "note": ("about",),
    "growth": (),
}


def key_of(environment: dict[str, Any]) -> str:
    """The machine that numbers are of, in one line."""
    return ", ".join(f"{name} {environment.get(name)}" for name in KEY)


class Record:
    """The lines of one file, read when it is opened and added to from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = _read(path)

    def add(self, line: Line) -> None:
        """Write a line; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(line)

    def of(self, kind: str, key: str) -> list[Line]:
        """The last line about each thing of a kind, on the machine of that key."""
        found: dict[tuple[str, ...], Line] = {}
        for line in self._lines:
            if line.get("kind") == kind and line.get("key") == key:
                identity = tuple(str(line.get(name)) for name in IDENTITY[kind])
                # In the order in which things were first found.
                found[identity] = line
        return list(found.values())

    def last(self, kind: str) -> Line | None:
        """The last line of a kind, on whatever machine."""
        return next((line for line in reversed(self._lines) if line.get("kind") == kind), None)


def _read(path: Path) -> list[Line]:
    """The whole lines of a file; what a kill left of another is cut off it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return list(_parsed(whole.decode("utf-8", errors="replace").splitlines()))


def _parsed(lines: Iterable[str]) -> Iterable[Line]:
    for line in lines:
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if isinstance(tree, dict) and tree.get("kind") in IDENTITY:
            yield tree

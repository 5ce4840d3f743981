"""The record of a run: its results so far as lines of JSON, written to disk immediately.

    {"kind": "machine", "key": …, "environment": …, "ceilings": …}
    {"kind": "cell", "key": …, "code": …, "cell": …, "launch": …, "rows": […]}
    {"kind": "test", "key": …, "code": …, "test": "tests/…::test_it", "outcome": "passed"}
    {"kind": "entry", "key": …, "kernel": "attention_forward", "bucket": …, "entry": …}
    {"kind": "fault", "key": …, "kernel": "attention_forward", "bucket": …, "source": …,
        "configuration": {…}, "why": …}
    {"kind": "note", "key": …, "about": "tuning", "text": …}
    {"kind": "growth", "key": …, "code": …, "found": …}

If several lines are about the same item, the last one is used. `key` identifies the machine and
`code` the code (`benchmarks.code`) of a line. Lines from another machine, other code or another
version of this format stay in the file and are not used. The next line overwrites a line that is
incomplete because the run was killed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from benchmarks.results import row_of
from fastgrow.errors import ConfigError

Line = dict[str, Any]
# Facts that must be equal for numbers to be comparable.
KEY = ("device", "driver", "torch", "triton")
# For each kind of line, the names that identify an item.
IDENTITY = {
    "machine": (),
    "cell": ("cell",),
    "test": ("test",),
    "entry": ("kernel", "bucket"),
    "fault": ("kernel", "bucket", "source", "configuration"),
    "note": ("about",),
    "growth": (),
}
# For each kind, further names that are read, and those of the above that are not strings.
CONTENT: dict[str, dict[str, type | UnionType]] = {
    "machine": {"environment": dict, "ceilings": dict},
    "cell": {"code": str, "launch": dict, "rows": list},
    "test": {"code": str, "outcome": str},
    "entry": {"entry": dict},
    "fault": {"configuration": dict | None, "why": str},
    "note": {"code": str, "text": str},
    "growth": {"code": str, "found": dict},
}


def key_of(environment: dict[str, Any]) -> str:
    """Return the key of a machine as one line.

    Only the driver's major version is included, because otherwise equal hosts differ in the rest.
    """
    facts = {name: str(environment.get(name)) for name in KEY}
    facts["driver"] = facts["driver"].partition(".")[0]
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())


class Record:
    """The lines of one file, which are read when it is opened; further lines are appended.

    Attributes:
        unused: number of lines that are damaged or from another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        end = content.rfind(b"\n") + 1
        # Offset at which the next line is written, if not at the end of the file.
        self._next: int | None = None
        if content[end:] and _parsed(content[end:]) is None:
            self._next, content = end, content[:end]
        # An editor, or a copy through a terminal, may have removed the last line's end.
        self._before = b"" if content[-1:] in (b"", b"\n") else b"\n"
        read = [_parsed(line) for line in content.split(b"\n") if line.strip()]
        self._lines = [line for line in read if line is not None]
        self.unused = len(read) - len(self._lines)

    def add(self, line: Line) -> None:
        """Write a line; it is on disk when this method returns.

        Raises:
            OSError: the file cannot be written, for example because the disk is full; its
                `filename` is the record's path.
        """
        try:
            with self.path.open("ab") as file:
                if self._next is not None:
                    file.truncate(self._next)
                # If the disk is full, a part of the line is written; the next call overwrites it.
                self._next = file.seek(0, os.SEEK_END)
                file.write(self._before + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._next, self._before = None, b""
        self._lines.append(line)

    def of(self, kind: str, key: str) -> list[Line]:
        """Return the last line about each item of a kind, for the machine with that key."""
        found: dict[tuple[str, ...], Line] = {}
        for line in self._lines:
            if line.get("kind") == kind and line.get("key") == key:
                identity = tuple(str(line.get(name)) for name in IDENTITY[kind])
                # The dict keeps the order in which items were first found.
                found[identity] = line
        return list(found.values())

    def last(self, kind: str) -> Line | None:
        """Return the last line of a kind, for any machine."""
        return next((line for line in reversed(self._lines) if line.get("kind") == kind), None)


@contextmanager
def open_alone(path: Path) -> Iterator[Record]:
    """Open the record with a lock, so that no other run can write to it.

    Otherwise two runs at the same time would each write results without those of the other.

    Raises:
        ConfigError: another run has the lock, or the folder cannot be created.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(
            f"--out {path.parent}: is a file; expected a folder, or a path that is free"
        ) from None
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--out {path.parent}: another run is writing to this folder; wait until it ends, "
                "or choose another folder"
            ) from None
        except OSError as error:
            # Some network file systems do not support locks.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield Record(path)


def _parsed(text: bytes) -> Line | None:
    """Parse a line; return None for one that is damaged or from another version."""
    try:
        line = json.loads(text)
        content = CONTENT[line["kind"]]
        kinds = dict.fromkeys(("key", *IDENTITY[line["kind"]]), str) | content
        if not all(isinstance(line[name], kind) for name, kind in kinds.items()):
            return None
        for row in line["rows"] if line["kind"] == "cell" else ():
            row_of(row)
    except (ValueError, TypeError, KeyError):
        return None
    return dict(line)

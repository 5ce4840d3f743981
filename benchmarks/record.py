"""What a run has found so far, one line of JSON each, on disk as soon as it is found.

    {"kind": "machine", "key": …, "environment": …, "ceilings": …}
    {"kind": "cell", "key": …, "code": …, "cell": …, "launch": …, "rows": […]}
    {"kind": "test", "key": …, "code": …, "test": "tests/…::test_it", "outcome": "passed"}
    {"kind": "entry", "key": …, "kernel": "attention_forward", "bucket": …, "entry": …}
    {"kind": "fault", "key": …, "kernel": "attention_forward", "bucket": …, "source": …,
        "configuration": {…}, "why": …}
    {"kind": "note", "key": …, "about": "tuning", "text": …}
    {"kind": "growth", "key": …, "code": …, "found": …}

Of several lines about one thing the last one counts. `key` names the machine and `code` the code
(`benchmarks.code`) that a line is about. Lines of another machine, of other code or of another
version of this format stay in the file and are not used. What a kill has left of a line is
overwritten by the next one.
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
# What has to be the same for a number to be comparable.
KEY = ("device", "driver", "torch", "triton")
# For each kind, what tells one thing from another.
IDENTITY = {
    "machine": (),
    "cell": ("cell",),
    "test": ("test",),
    "entry": ("kernel", "bucket"),
    "fault": ("kernel", "bucket", "source", "configuration"),
    "note": ("about",),
    "growth": (),
}
# What else is read of a line, and what of the above is no text.
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
    """The machine that numbers are of, in one line.

    Of the driver the major version: hosts of one kind differ in the rest.
    """
    facts = {name: str(environment.get(name)) for name in KEY}
    facts["driver"] = facts["driver"].partition(".")[0]
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())


class Record:
    """The lines of one file, read when it is opened and added to from then on.

    Attributes:
        unused: how many lines are damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        end = content.rfind(b"\n") + 1
        # Where the next line begins, if not at the end of the file.
        self._next: int | None = None
        if content[end:] and _parsed(content[end:]) is None:
            self._next, content = end, content[:end]
        # An editor, or a copy through a terminal, may have left out the last line's end.
        self._before = b"" if content[-1:] in (b"", b"\n") else b"\n"
        read = [_parsed(line) for line in content.split(b"\n") if line.strip()]
        self._lines = [line for line in read if line is not None]
        self.unused = len(read) - len(self._lines)

    def add(self, line: Line) -> None:
        """Write a line; it is on disk when this returns.

        Raises:
            OSError: the disk is full, …; its `filename` is the record's.
        """
        try:
            with self.path.open("ab") as file:
                if self._next is not None:
                    file.truncate(self._next)
                # A full disk leaves a part of the line.
                self._next = file.seek(0, os.SEEK_END)
                file.write(self._before + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._next, self._before = None, b""
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


@contextmanager
def open_alone(path: Path) -> Iterator[Record]:
    """The record, for as long as no other run writes to it.

    Two at once would each write results without what the other has found.

    Raises:
        ConfigError: another run does, or there can be no such folder.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path.parent}: expected a folder, or a name that is free") from None
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path.parent}: another run is writing there; wait for its end, "
                "or choose another folder"
            ) from None
        except OSError as error:
            # Some network disks know no locks.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield Record(path)


def _parsed(text: bytes) -> Line | None:
    """What a line says; None for one that is damaged or of another version."""
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

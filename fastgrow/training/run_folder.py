"""The run folder: its lock, and the recorded settings of the run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastgrow import _files
from fastgrow.errors import CheckpointError, ConfigError

Resume = Literal["auto", "never"]
"""Whether a run that is in the folder is continued (`"auto"`) or is an error (`"never"`)."""
RECORD = "run.json"
LOCK = "lock"


class FolderInUse(ConfigError):
    """Another process uses the run folder."""


@contextmanager
def sole_user(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Context manager that locks a run folder for this process.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: folder to lock; created if missing.
        name: name of the lock file.

    Raises:
        FolderInUse: another process holds the lock.
        CheckpointError: the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+")
    except OSError as error:
        raise CheckpointError(f"{folder}: the run folder is not writable ({error})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise FolderInUse(
                f"{folder}: another process{f' (PID {holder})' if holder else ''} is using this "
                "run folder; wait until it ends, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def claim_folder(
    out: Path,
    settings: dict[str, Any],
    resume: Resume,
    environment: dict[str, Any] | None = None,
) -> None:
    """Record a new run's settings in its folder, or check them against those of the run there.

    Args:
        out: run folder; created if missing.
        settings: all settings that affect the results of the run, as JSON values.
        resume: `"auto"` resumes a run with the same settings; `"never"` raises an error if the
            folder already has a run.
        environment: software and hardware (`describe_environment`); recorded, never compared.

    Raises:
        ConfigError: the folder has a run with different settings, or any run with `"never"`.
    """
    # Converted as by saving and loading: tuples become lists.
    settings = json.loads(json.dumps(settings))
    record = out / RECORD
    if not record.exists():
        recorded = settings if environment is None else {**settings, "environment": environment}
        _files.write_json(record, recorded)
        return
    if resume == "never":
        raise ConfigError(
            f"{out}: already contains a run; choose another folder, or continue the run by "
            "resume='auto' (on the command line: without --fresh)"
        )
    there = _files.read_json(record)
    for key, value in settings.items():
        if there.get(key) != value:
            place, was, now = _difference(key, there.get(key), value)
            raise ConfigError(
                f"{out}: contains a run with another {place} ({was!r}, now {now!r}); choose "
                "another folder, or resume with the old settings"
            )


def _difference(place: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """Return the path and both values of the first innermost setting that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*now, *was]:
            if was.get(key) != now.get(key):
                return _difference(f"{place}.{key}", was.get(key), now.get(key))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            if old != new:
                return _difference(f"{place}.{index}", old, new)
    return place, was, now

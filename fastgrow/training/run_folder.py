"""The folder of a run, and the settings that it was begun with."""

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
RECORD = "run.json"
LOCK = "lock"


class FolderInUse(ConfigError):
    """Another process is at work in the folder."""


@contextmanager
def sole_user(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Be the one process at work in a folder; that is over with this process, however it ends.

    Args:
        folder: made where it is missing.
        name: of the file that is locked.

    Raises:
        FolderInUse: another process is.
        CheckpointError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+")
    except OSError as error:
        raise CheckpointError(f"{folder}: a run cannot be written there ({error})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise FolderInUse(
                f"{folder}: another process is at work on this run"
                f"{f' (number {holder})' if holder else ''}; wait until it ends, or choose another "
                "folder"
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
    """Begin a run in a folder, or make sure that the one there is this one.

    Args:
        out: the folder; made where it is missing.
        settings: all that decides what the run computes, in JSON values.
        resume: `"auto"` goes on with a run of the same settings; `"never"` wants none there.
        environment: what it is begun by and on (`describe_environment`); recorded, never compared.

    Raises:
        ConfigError: the folder holds a run of other settings, or one at all under `"never"`.
    """
    # As it will be read back: tuples become lists.
    settings = json.loads(json.dumps(settings))
    record = out / RECORD
    if not record.exists():
        recorded = settings if environment is None else {**settings, "environment": environment}
        _files.write_json(record, recorded)
        return
    if resume == "never":
        raise ConfigError(f"{out}: holds a run already; choose another folder or resume='auto'")
    there = _files.read_json(record)
    for key, value in settings.items():
        if there.get(key) != value:
            place, was, now = _difference(key, there.get(key), value)
            raise ConfigError(
                f"{out}: holds a run with another {place} ({was!r}, now {now!r}); choose another "
                "folder, or go on with the old settings"
            )


def _difference(place: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The name and the values of the innermost setting in which two trees differ first."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*now, *was]:
            if was.get(key) != now.get(key):
                return _difference(f"{place}.{key}", was.get(key), now.get(key))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            if old != new:
                return _difference(f"{place}.{index}", old, new)
    return place, was, now

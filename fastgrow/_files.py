"""Writing files so that a reader never sees half of one.

Everything goes to a temporary sibling first, is flushed to the disk and then renamed: a crash, a
full disk or a second process leaves either the old content or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fastgrow.errors import CheckpointError


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block ends well.

    Raises:
        OSError: the disk is full, the folder is not writable, …; its `filename` is `path`.
    """
    path = Path(path)
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; a finished file follows the user's umask as open() would.
            temporary.chmod(0o666 & ~_umask())
            fsync_path(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str, owned: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place when the block ends well.

    Args:
        path: the folder to make or replace.
        owned: names that an existing folder may hold. Replacing a folder throws its content away,
            so one that holds anything else is not ours to replace.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds a name not in `owned`.
        OSError: the disk is full, the folder is not writable, …; its `filename` is `path`, or
            another file at fault.
    """
    path = Path(path)
    _refuse_foreign(path, owned)
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                # safetensors makes private files, as mkstemp does.
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                fsync_path(file)
            fsync_path(temporary)
            _refuse_foreign(path, owned)
            _rename_over(temporary, path)
            fsync_path(path.parent)
        finally:
            # After a swap this is the previous content, after a failure the unfinished one.
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path | str) -> None:
    """Remove what a process that was killed while it wrote `path` has left beside it."""
    path = Path(path)
    for entry in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Let errors of the disk name `path`: a full disk names no file, and others a temporary one."""
    try:
        yield
    except _safetensor_errors() as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    except OSError as error:
        temporary = f".{path.name}." in os.fsdecode(error.filename or "")
        if error.errno is None or (error.filename is not None and not temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _safetensor_errors() -> tuple[type[Exception], ...]:
    """None where safetensors was not imported: the benchmarks do without it, and nothing raises."""
    module = sys.modules.get("safetensors")
    return () if module is None else (module.SafetensorError,)


def _refuse_foreign(path: Path, owned: Collection[str]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path}: is a file; a folder was to be written there")
    foreign = sorted({entry.name for entry in path.iterdir()} - set(owned))
    if foreign:
        raise FileExistsError(
            f"{path}: holds {foreign[0]!r}, which would be lost by writing there; "
            "choose another folder or move it away"
        )


def _rename_over(source: Path, target: Path) -> None:
    """Put folder `source` at `target`; what stood at `target` is at `source` afterwards."""
    if not target.exists():
        source.replace(target)
        return
    # rename(2) does not replace a non-empty folder, and two renames would leave a moment with
    # neither; Linux can swap the two names in one step.
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        at_fdcwd, rename_exchange = -100, 2
        failed = libc.renameat2(
            at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), rename_exchange
        )
        if not failed:
            return
    previous = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.replace(previous)
    try:
        source.replace(target)
    except OSError:
        previous.replace(target)
        raise
    previous.replace(source)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, readable by people and stable under `diff`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is missing or is not valid JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: expected a file, got a folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    # There is no way to read the mask without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

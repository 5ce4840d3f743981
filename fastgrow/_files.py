"""Atomic file and folder writes: a reader never sees partly written content.

Content is written to a temporary file or folder in the same directory, flushed to disk and then
renamed. After a crash, on a full disk or with a second process, a path has either its old content
or its new content.
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
    """Flush a file, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` if the block succeeds.

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
            # mkstemp creates private files; the finished file follows the user's umask.
            temporary.chmod(0o666 & ~_umask())
            fsync_path(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str, owned: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it replaces `path` if the block succeeds.

    Args:
        path: the folder to create or replace.
        owned: file names that an existing folder may contain. Replacing a folder deletes its
            content, so a folder with any other file is not replaced.

    Raises:
        FileExistsError: `path` is a file, or a folder with a file whose name is not in `owned`.
        OSError: the disk is full, the folder is not writable, …; its `filename` is `path`, or
            the file that could not be written.
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
                # safetensors creates private files, as mkstemp does.
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                fsync_path(file)
            fsync_path(temporary)
            _refuse_foreign(path, owned)
            _rename_over(temporary, path)
            fsync_path(path.parent)
        finally:
            # After a swap this is the previous content; after a failure, the unfinished content.
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path | str) -> None:
    """Remove temporary files and folders of a process that was killed while it wrote `path`."""
    path = Path(path)
    for entry in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Set the file name of disk errors to `path`.

    The error of a full disk has no file name; other errors have that of the temporary file.
    """
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
    """Return safetensors' error class; an empty tuple if safetensors was not imported."""
    module = sys.modules.get("safetensors")
    return () if module is None else (module.SafetensorError,)


def _refuse_foreign(path: Path, owned: Collection[str]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path}: is a file, expected a folder or an unused path")
    foreign = sorted({entry.name for entry in path.iterdir()} - set(owned))
    if foreign:
        raise FileExistsError(
            f"{path}: contains {foreign[0]!r}, which would be deleted by writing this folder; "
            "choose another folder or move the file away"
        )


def _rename_over(source: Path, target: Path) -> None:
    """Move folder `source` to `target`; the previous content of `target` ends up at `source`."""
    if not target.exists():
        source.replace(target)
        return
    # rename(2) does not replace a non-empty folder, and between two renames neither folder would be
    # at `target`; Linux can swap the two names in one step.
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
    """Write indented JSON atomically."""
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
    """Return the hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

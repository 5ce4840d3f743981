"""Rows in a file: each with a checksum, found again by a header that is written last.

Rows are read with `preadv` into the tensor that is handed out, and not through a memory map: a file
that was cut short or a disk that is full then gives an error, where a map would end the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgrow import _files
from fastgrow.errors import CheckpointError
from fastgrow.growth.trunk.key import Identity, key_of
from fastgrow.growth.trunk.store import DamagedRows

FORMAT = 1
PROBE = ".probe."
_HEADER, _ROWS = ".trunk.json", ".trunk.rows"


class DiskStore:
    """`<key>.trunk.rows` holds the rows, their CRC-32 and the windows they belong to;
    `<key>.trunk.json` says what they are and appears when all of them are written.
    """

    place = "disk"

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        windows: np.ndarray,
        row_shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        pinned: bool = False,
    ) -> None:
        self.identity = identity
        self.windows = windows
        self._row_shape, self._dtype, self._pinned = row_shape, dtype, pinned
        self._row_bytes = row_shape[0] * row_shape[1] * dtype.itemsize
        self._sums = np.zeros(len(windows), dtype="<u4")
        stem = key_of(identity)[:24]
        self._header, self._path = folder / f"{stem}{_HEADER}", folder / f"{stem}{_ROWS}"
        self._file = -1

    @classmethod
    def create(cls, folder: Path, *arguments: Any, **options: Any) -> DiskStore:
        """An empty file of the full size; arguments as of the class.

        Raises:
            OSError: the disk has no room, or the folder cannot be written.
        """
        store = cls(folder, *arguments, **options)
        folder.mkdir(parents=True, exist_ok=True)
        store._header.unlink(missing_ok=True)
        store._file = os.open(store._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            # A full disk is found out now and not in the middle of training.
            os.posix_fallocate(store._file, 0, max(1, store._tail_at + store._tail_bytes))
        except OSError:
            store.discard()
            raise
        return store

    @classmethod
    def open(cls, header: Path, *, pinned: bool = False) -> DiskStore:
        """The file that a header describes.

        Raises:
            CheckpointError: header or file are damaged, unfinished or of another version.
        """
        content = _files.read_json(header)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{header}: is not the header of a trunk cache")
        try:
            store = cls(
                header.parent,
                content["identity"],
                np.zeros(int(content["rows"]), dtype="<i8"),
                tuple(content["row_shape"]),
                getattr(torch, content["dtype"]),
                pinned=pinned,
            )
            store._file = os.open(store._path, os.O_RDWR)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{header}: is damaged ({error})") from None
        except OSError as error:
            raise CheckpointError(f"{header}: its rows cannot be read ({error})") from None
        tail = os.pread(store._file, store._tail_bytes, store._tail_at)
        if store._header != header or hashlib.sha256(tail).hexdigest() != content.get("tail"):
            os.close(store._file)
            raise CheckpointError(f"{header}: does not belong to its rows, or they are damaged")
        split = store._sums.nbytes
        store._sums = np.frombuffer(tail[:split], dtype="<u4").copy()
        store.windows = np.frombuffer(tail[split:], dtype="<i8").copy()
        return store

    @property
    def nbytes(self) -> int:
        return self._tail_at + self._tail_bytes

    @property
    def _tail_at(self) -> int:
        return len(self.windows) * self._row_bytes

    @property
    def _tail_bytes(self) -> int:
        return len(self.windows) * 12

    def read(self, slots: np.ndarray) -> Tensor:
        shape = (len(slots), *self._row_shape)
        rows = torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned)
        damaged = [
            slot
            for slot, row in zip(slots, _bytes_of(rows), strict=True)
            if not self._reads(int(slot), row)
        ]
        if damaged:
            raise DamagedRows(np.array(damaged), self._path)
        return rows

    def _reads(self, slot: int, row: memoryview) -> bool:
        """Fill `row`; False where it does not come back as it was written."""
        try:
            size = os.preadv(self._file, [row], slot * self._row_bytes)
        except OSError as error:
            # A part of the disk that cannot be read any more is damaged as well.
            if error.errno != errno.EIO:
                raise
            return False
        return size == self._row_bytes and zlib.crc32(row) == self._sums[slot]

    def write(self, slots: np.ndarray, rows: Tensor) -> None:
        kept = rows.detach().cpu().contiguous()
        for slot, row in zip(slots, _bytes_of(kept), strict=True):
            self._sums[slot] = zlib.crc32(row)
            if os.pwrite(self._file, row, int(slot) * self._row_bytes) != self._row_bytes:
                raise OSError(f"{self._path}: a row could not be written whole")

    def finish(self) -> None:
        """Write checksums and header; from now on the file can be found again."""
        tail = self._sums.tobytes() + self.windows.astype("<i8").tobytes()
        os.pwrite(self._file, tail, self._tail_at)
        os.fsync(self._file)
        content = {
            "format": FORMAT,
            "identity": self.identity,
            "rows": len(self.windows),
            "row_shape": list(self._row_shape),
            "dtype": str(self._dtype).removeprefix("torch."),
            "tail": hashlib.sha256(tail).hexdigest(),
        }
        _files.write_json(self._header, content)

    def forget(self) -> None:
        """Let the next read come from the disk and not from the host's memory."""
        os.fsync(self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Keep the file for a run that goes on."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        self.close()
        self._header.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


def headers(folder: Path) -> Iterator[Path]:
    """Headers of the caches in a folder, in a fixed order."""
    yield from sorted(folder.glob(f"*{_HEADER}"))


def remove_caches(folder: Path, but: DiskStore | None = None) -> None:
    """Remove all caches in a folder, unfinished ones too, except one."""
    for path in [*folder.glob(f"*{_HEADER}"), *folder.glob(f"*{_ROWS}")]:
        if but is None or path not in (but._header, but._path):
            path.unlink(missing_ok=True)
    # What a process that was killed meanwhile has left: a half-written header, a measurement.
    for path in folder.glob(f".*{_HEADER}.*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{PROBE}*"):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _bytes_of(rows: Tensor) -> Iterator[memoryview]:
    for row in rows:
        yield memoryview(row.view(torch.uint8).numpy()).cast("B")

"""Storage for cached activations: device memory, host memory, or a file on disk.

A store has a fixed number of entries. An entry holds the trunk's output for one window,
[T, d_model], and is addressed by its slot, an index from 0.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastgrow import _files
from fastgrow.errors import CheckpointError, FastgrowError

# Everything that decides the bits of cached activations, as JSON values, so that it can be stored
# in a file and compared after loading.
Identity = dict[str, Any]

FORMAT = 1
PROBE = ".probe."
_HEADER, _ENTRIES = ".trunk.json", ".trunk.rows"


class DamagedEntries(FastgrowError, RuntimeError):
    """Entries whose content is not what was written: a checksum differs or the file is too short.

    Attributes:
        slots: slots of the damaged entries.
    """

    def __init__(self, slots: np.ndarray, where: object) -> None:
        super().__init__(
            f"{where}: {len(slots)} cached activations are damaged, the first is entry {slots[0]}"
        )
        self.slots = slots


class ActivationStore(Protocol):
    """A fixed number of entries, each a tensor [T, d_model]."""

    @property
    def place(self) -> str:
        """`"device"`, `"ram"` or `"disk"`."""
        ...

    @property
    def nbytes(self) -> int: ...

    def read(self, slots: np.ndarray) -> Tensor:
        """Return the entries at `slots`, [len(slots), T, d_model].

        Raises:
            DamagedEntries: the content of some entries is not what was written.
        """
        ...

    def write(self, slots: np.ndarray, entries: Tensor) -> None: ...

    def finish(self) -> None:
        """Complete the store after all entries are written."""
        ...

    def discard(self) -> None:
        """Free the memory or delete the file."""
        ...


class MemoryStore:
    """Entries in one tensor, on the model's device or in host memory.

    If the model is on a GPU, entries that are read from host memory are returned in pinned memory,
    so that the copy to the device can be asynchronous. The stored tensor itself is not pinned:
    reading gathers entries anyway, and torch rounds pinned allocations up to a power of two, up to
    twice the requested size.

    Args:
        place: `"device"` or `"ram"`.
        shape: [entries, T, d_model].
        like: a tensor with the dtype of the entries, on the model's device.
    """

    def __init__(self, place: str, shape: tuple[int, ...], like: Tensor) -> None:
        self.place = place
        on_device = place == "device" or like.device.type == "cpu"
        self._pins = not on_device and like.device.type == "cuda"
        device = like.device if on_device else torch.device("cpu")
        self._entries = torch.empty(shape, dtype=like.dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self._entries.nbytes

    def read(self, slots: np.ndarray) -> Tensor:
        index = torch.from_numpy(slots).to(self._entries.device)
        if not self._pins:
            return self._entries[index]
        shape = (len(slots), *self._entries.shape[1:])
        entries = torch.empty(shape, dtype=self._entries.dtype, pin_memory=True)
        return torch.index_select(self._entries, 0, index, out=entries)

    def write(self, slots: np.ndarray, entries: Tensor) -> None:
        index = torch.from_numpy(slots).to(self._entries.device)
        self._entries[index] = entries.to(self._entries.device)

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        self._entries = self._entries[:0].clone()


class DiskStore:
    """Entries in a file, each with a checksum, and a header that is written last.

    `<key>.trunk.rows` holds the entries, their CRC-32 and the windows they belong to.
    `<key>.trunk.json` is the header; it exists only if all entries are written.

    Entries are read with `preadv` into the returned tensor instead of through a memory map: with a
    truncated file or a full disk, `preadv` raises an error, while a memory map would kill the
    process.

    Args:
        folder: folder of the two files.
        identity: what decides the bits of the entries.
        windows: indices of the windows, one for each entry.
        entry_shape: (T, d_model).
        dtype: dtype of the entries.
        pinned: whether `read` returns pinned memory.
    """

    place = "disk"

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        windows: np.ndarray,
        entry_shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        pinned: bool = False,
    ) -> None:
        self.identity = identity
        self.windows = windows
        self._entry_shape, self._dtype, self._pinned = entry_shape, dtype, pinned
        self._entry_bytes = entry_shape[0] * entry_shape[1] * dtype.itemsize
        self._checksums = np.zeros(len(windows), dtype="<u4")
        stem = _key(identity)[:24]
        self._header, self._path = folder / f"{stem}{_HEADER}", folder / f"{stem}{_ENTRIES}"
        self._file = -1

    @classmethod
    def create(cls, folder: Path, *arguments: Any, **options: Any) -> DiskStore:
        """Create a file of the full size; the arguments are those of the class.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        store = cls(folder, *arguments, **options)
        folder.mkdir(parents=True, exist_ok=True)
        store._header.unlink(missing_ok=True)
        store._file = os.open(store._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            # Allocate the whole file now, so that a full disk raises before training starts.
            os.posix_fallocate(store._file, 0, max(1, store._tail_at + store._tail_bytes))
        except OSError:
            store.discard()
            raise
        return store

    @classmethod
    def open(cls, header: Path, *, pinned: bool = False) -> DiskStore:
        """Open the file that a header describes.

        Raises:
            CheckpointError: the header or the file is damaged, incomplete or of another version.
        """
        content = _files.read_json(header)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{header}: is not the header of an activation cache")
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
            raise CheckpointError(f"{header}: its entries cannot be read ({error})") from None
        tail = os.pread(store._file, store._tail_bytes, store._tail_at)
        if store._header != header or hashlib.sha256(tail).hexdigest() != content.get("tail"):
            os.close(store._file)
            raise CheckpointError(
                f"{header}: does not match its file of entries, or one of the two is damaged"
            )
        split = store._checksums.nbytes
        store._checksums = np.frombuffer(tail[:split], dtype="<u4").copy()
        store.windows = np.frombuffer(tail[split:], dtype="<i8").copy()
        return store

    @property
    def nbytes(self) -> int:
        return self._tail_at + self._tail_bytes

    @property
    def _tail_at(self) -> int:
        return len(self.windows) * self._entry_bytes

    @property
    def _tail_bytes(self) -> int:
        return len(self.windows) * 12

    def read(self, slots: np.ndarray) -> Tensor:
        shape = (len(slots), *self._entry_shape)
        entries = torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned)
        damaged = [
            slot
            for slot, entry in zip(slots, _bytes_of(entries), strict=True)
            if not self._read_into(entry, int(slot))
        ]
        if damaged:
            raise DamagedEntries(np.array(damaged), self._path)
        return entries

    def _read_into(self, entry: memoryview, slot: int) -> bool:
        """Fill `entry` from the file; False if the content is not what was written."""
        try:
            size = os.preadv(self._file, [entry], slot * self._entry_bytes)
        except OSError as error:
            # A sector that can no longer be read counts as damaged.
            if error.errno != errno.EIO:
                raise
            return False
        return size == self._entry_bytes and zlib.crc32(entry) == self._checksums[slot]

    def write(self, slots: np.ndarray, entries: Tensor) -> None:
        on_host = entries.detach().cpu().contiguous()
        for slot, entry in zip(slots, _bytes_of(on_host), strict=True):
            self._checksums[slot] = zlib.crc32(entry)
            if os.pwrite(self._file, entry, int(slot) * self._entry_bytes) != self._entry_bytes:
                raise OSError(f"{self._path}: entry {slot} could not be written completely")

    def finish(self) -> None:
        """Write the checksums and the header; from then on the file can be opened again."""
        tail = self._checksums.tobytes() + self.windows.astype("<i8").tobytes()
        os.pwrite(self._file, tail, self._tail_at)
        os.fsync(self._file)
        content = {
            "format": FORMAT,
            "identity": self.identity,
            "rows": len(self.windows),
            "row_shape": list(self._entry_shape),
            "dtype": str(self._dtype).removeprefix("torch."),
            "tail": hashlib.sha256(tail).hexdigest(),
        }
        _files.write_json(self._header, content)

    def drop_page_cache(self) -> None:
        """Make the next read come from the disk instead of from the host's memory."""
        os.fsync(self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file without deleting it, for a run that is resumed later."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        self.close()
        self._header.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


def headers(folder: Path) -> Iterator[Path]:
    """Yield the headers of the caches in a folder, sorted by name."""
    yield from sorted(folder.glob(f"*{_HEADER}"))


def remove_caches(folder: Path, but: DiskStore | None = None) -> None:
    """Remove all caches in a folder, incomplete ones included, except `but`."""
    for path in [*folder.glob(f"*{_HEADER}"), *folder.glob(f"*{_ENTRIES}")]:
        if but is None or path not in (but._header, but._path):
            path.unlink(missing_ok=True)
    # Files of a process that was killed: a partly written header, a measurement.
    for path in folder.glob(f".*{_HEADER}.*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{PROBE}*"):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _key(identity: Identity) -> str:
    """Return the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _bytes_of(entries: Tensor) -> Iterator[memoryview]:
    for entry in entries:
        yield memoryview(entry.view(torch.uint8).numpy()).cast("B")

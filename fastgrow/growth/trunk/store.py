"""Where rows of the trunk's output lie: in a device's memory, in the host's, or in a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastgrow.errors import FastgrowError


class DamagedRows(FastgrowError, RuntimeError):
    """Rows that are not as they were written: their checksum differs, or they are cut short."""

    def __init__(self, slots: np.ndarray, where: object) -> None:
        super().__init__(f"{where}: {len(slots)} rows are damaged, the first is row {slots[0]}")
        self.slots = slots


class RowStore(Protocol):
    """A fixed number of rows, each a tensor [T, d_model]."""

    @property
    def place(self) -> str:
        """`"device"`, `"ram"` or `"disk"`."""
        ...

    @property
    def nbytes(self) -> int: ...

    def read(self, slots: np.ndarray) -> Tensor:
        """[len(slots), T, d_model].

        Raises:
            DamagedRows: some of them are not as they were written.
        """
        ...

    def write(self, slots: np.ndarray, rows: Tensor) -> None: ...

    def finish(self) -> None:
        """All rows are written."""
        ...

    def discard(self) -> None:
        """Give the memory or the file back."""
        ...


class MemoryStore:
    """Rows in one tensor, on the model's device or in host memory.

    For a model on a GPU what is read of host memory is pinned, so that its copy to the device can
    be asynchronous. The rows themselves are not: reading gathers them, and torch pins memory in
    powers of two, up to twice what was asked for.
    """

    def __init__(self, place: str, shape: tuple[int, ...], like: Tensor) -> None:
        """Room for `shape` [rows, T, d_model] in the dtype of `like`, on its device or the host."""
        self.place = place
        on_device = place == "device" or like.device.type == "cpu"
        self._pins = not on_device and like.device.type == "cuda"
        device = like.device if on_device else torch.device("cpu")
        self._rows = torch.empty(shape, dtype=like.dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def read(self, slots: np.ndarray) -> Tensor:
        index = torch.from_numpy(slots).to(self._rows.device)
        if not self._pins:
            return self._rows[index]
        shape = (len(slots), *self._rows.shape[1:])
        rows = torch.empty(shape, dtype=self._rows.dtype, pin_memory=True)
        return torch.index_select(self._rows, 0, index, out=rows)

    def write(self, slots: np.ndarray, rows: Tensor) -> None:
        index = torch.from_numpy(slots).to(self._rows.device)
        self._rows[index] = rows.to(self._rows.device)

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        self._rows = self._rows[:0].clone()

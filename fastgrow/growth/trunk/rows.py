"""The trunk's output for a set of windows: built, advanced, read and repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgrow.errors import FastgrowError
from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.key import Identity
from fastgrow.growth.trunk.store import DamagedRows, RowStore
from fastgrow.training import Batches


class MissingRows(FastgrowError):
    """A window has no row: it is read ahead or trained on beyond what the stage was planned for."""


@dataclass
class TrunkRows:
    """One row for each of `windows`.

    Attributes:
        windows: int64, ascending.
        store: holds their rows in that order.
        identity: what decides their bits.
        exact: whether they were found to be equal to recomputing, bit for bit.
    """

    windows: np.ndarray
    store: RowStore
    identity: Identity
    exact: bool = False

    @property
    def n(self) -> int:
        """Blocks of the trunk."""
        return int(self.identity["n"])

    def holds(self, windows: np.ndarray) -> np.ndarray:
        """Which of the windows have a row, bool."""
        return np.isin(windows, self.windows, assume_unique=True)

    def read(self, windows: np.ndarray) -> Tensor:
        """Rows of windows that are held, [len(windows), T, d_model].

        Raises:
            DamagedRows: some are not as they were written; its slots are in `self.windows`.
            MissingRows: one has no row.
        """
        slots = np.searchsorted(self.windows, windows)
        there = slots < len(self.windows)
        there[there] = self.windows[slots[there]] == windows[there]
        if not there.all():
            raise MissingRows(f"window {windows[~there][0]} has no kept row of the trunk")
        return self.store.read(slots)


class Filler:
    """Computes rows in micro-batches of the training's shape.

    A product of another shape may round otherwise, and some round a row by its place among the
    others. A window always has the same place here, so that its row has the same bits whenever and
    beside whichever others it is computed.

    Args:
        trunk: of the stage.
        batches: reads the windows' ids.
        pause: called between micro-batches; may raise to stop.
    """

    def __init__(
        self, trunk: FrozenTrunk, batches: Batches, pause: Callable[[], None] = lambda: None
    ) -> None:
        self.trunk = trunk
        self.batches = batches
        self._pause = pause

    def compute(self, windows: np.ndarray) -> Tensor:
        """The rows of windows that have places of their own, from their ids."""
        return self.trunk(self.ids(self._placed(windows)))[self._places(windows)]

    def rows_of(self, windows: np.ndarray) -> Tensor:
        """The rows of any windows, from their ids."""
        parts, left = [], np.arange(len(windows))
        while len(left):
            _, first = np.unique(self._places(windows[left]), return_index=True)
            parts.append((left[first], self.compute(windows[left[first]])))
            left = np.delete(left, first)
        order = np.argsort(np.concatenate([slots for slots, _ in parts]))
        return torch.cat([rows for _, rows in parts])[torch.from_numpy(order)]

    def advance(self, old: TrunkRows, windows: np.ndarray) -> Tensor:
        """The same from the rows of a shallower trunk; damaged ones are computed anew."""
        try:
            x = old.read(self._placed(windows))
        except DamagedRows:
            return self.compute(windows)
        x = x.to(self.trunk.model.device, non_blocking=True)
        return self.trunk.onward(x, old.n)[self._places(windows)]

    def micro_batches(self, windows: np.ndarray) -> int:
        """How many it takes to compute the windows' rows.

        Of a random part of the text more windows have one place than another; then some
        micro-batches are not full.
        """
        return int(np.bincount(self._places(windows)).max(initial=0))

    def ids(self, windows: np.ndarray) -> Tensor:
        """The windows' ids on the model's device, [len(windows), T]."""
        return self.batches.read(windows)[0].to(self.trunk.model.device)

    def fill(self, rows: TrunkRows, old: TrunkRows | None) -> int:
        """Write every row; returns how many were advanced from `old`, which may share the store."""
        known = np.zeros(len(rows.windows), dtype=bool) if old is None else old.holds(rows.windows)
        for slots in self._chunks(rows, np.flatnonzero(known)):
            assert old is not None
            rows.store.write(slots, self.advance(old, rows.windows[slots]))
        for slots in self._chunks(rows, np.flatnonzero(~known)):
            rows.store.write(slots, self.compute(rows.windows[slots]))
        rows.store.finish()
        return int(known.sum())

    def repair(self, rows: TrunkRows, slots: np.ndarray) -> None:
        """Compute damaged rows anew and write them."""
        for chunk in self._chunks(rows, slots):
            rows.store.write(chunk, self.compute(rows.windows[chunk]))

    def _chunks(self, rows: TrunkRows, slots: np.ndarray) -> Iterator[np.ndarray]:
        """The slots in parts whose windows have different places."""
        places = self._places(rows.windows[slots])
        by_place = np.argsort(places, kind="stable")
        starts = np.cumsum(np.bincount(places, minlength=self.batches.batch_size))
        # How many slots of the same place come before each: its part.
        turn = np.empty_like(slots)
        turn[by_place] = np.arange(len(slots)) - np.append(0, starts)[places[by_place]]
        in_parts = slots[np.argsort(turn, kind="stable")]
        for part in np.split(in_parts, np.cumsum(np.bincount(turn))[:-1]) if len(slots) else ():
            self._pause()
            yield part

    def _places(self, windows: np.ndarray) -> np.ndarray:
        return windows % self.batches.batch_size

    def _placed(self, windows: np.ndarray) -> np.ndarray:
        """A whole micro-batch with the windows at their places, and one of them at all others."""
        placed = np.full(self.batches.batch_size, windows[0])
        placed[self._places(windows)] = windows
        return placed

"""Cached activations of a stage: the trunk's output for a set of windows, written and read.

`CacheWriter` computes and writes them, `CachedActivations` holds them, and `CachedBatches` reads
them in the order of training.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgrow.errors import FastgrowError
from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.stores import ActivationStore, DamagedEntries, Identity
from fastgrow.training import Batches

# Batches that are read in advance: one is read while the other waits to be used.
AHEAD = 2


class MissingEntry(FastgrowError):
    """A window has no cached activations: the stage reads or trains beyond its planned length."""


@dataclass
class CachedActivations:
    """The trunk's output for each of `windows`.

    Attributes:
        windows: int64, ascending.
        store: stores one entry for each window, in that order.
        identity: what decides the bits of the entries.
        exact: whether a comparison found them equal to recomputing, bit for bit.
    """

    windows: np.ndarray
    store: ActivationStore
    identity: Identity
    exact: bool = False

    @property
    def n(self) -> int:
        """Number of blocks of the trunk."""
        return int(self.identity["n"])

    def holds(self, windows: np.ndarray) -> np.ndarray:
        """Return for each window whether it has an entry, bool."""
        return np.isin(windows, self.windows, assume_unique=True)

    def read(self, windows: np.ndarray) -> Tensor:
        """Return the activations of windows, [len(windows), T, d_model].

        Raises:
            DamagedEntries: some entries are not as they were written; its slots are indices into
                `self.windows`.
            MissingEntry: a window has no entry.
        """
        slots = np.searchsorted(self.windows, windows)
        found = slots < len(self.windows)
        found[found] = self.windows[slots[found]] == windows[found]
        if not found.all():
            raise MissingEntry(f"window {windows[~found][0]} has no cached activations")
        return self.store.read(slots)


def identity(trunk: FrozenTrunk, digest: str, batches: Batches, windows: np.ndarray) -> Identity:
    """Return everything that decides the bits of the activations of `windows`.

    The batch size and a window's position in a micro-batch are part of it (`CacheWriter`).
    """
    return {
        "n": trunk.n,
        "trunk": digest,
        "windows": hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest(),
        "dtype": trunk.dtype,
        "precision": str(trunk.precision),
        "data": batches.stream.digest,
        "substrate": batches.stream.substrate.fingerprint,
        "seq_len": batches.seq_len,
        "batch_size": batches.batch_size,
        "place": "window % batch_size",
        "n_windows": batches.n_windows,
        "torch": torch.__version__,
        "device": trunk.model.device.type,
    }


def can_advance(old: Identity, wanted: Identity, digests: Sequence[str]) -> bool:
    """Whether activations of `old` are the output of lower blocks of the trunk of `wanted`.

    The windows may differ: those that both have are advanced.

    Args:
        old: identity of cached activations.
        wanted: identity of the activations that a stage needs.
        digests: digests of the stage's trunk at every depth (`trunk_digests`).
    """
    free = ("n", "trunk", "windows")
    if any(old.get(name) != value for name, value in wanted.items() if name not in free):
        return False
    n = old.get("n")
    return isinstance(n, int) and 0 <= n < len(digests) and digests[n] == old.get("trunk")


class CacheWriter:
    """Computes the activations of windows and writes them into a store.

    A matrix product of another shape may round differently, and some products round a row
    differently at another position of the batch. Activations are therefore computed in
    micro-batches of the training's shape, and a window always has the same position in its
    micro-batch. Its activations then have the same bits, whenever and together with whichever
    other windows they are computed.

    Args:
        trunk: the stage's trunk.
        batches: reads the windows' ids.
        pause: called between micro-batches; may raise to stop.
    """

    def __init__(
        self, trunk: FrozenTrunk, batches: Batches, pause: Callable[[], None] = lambda: None
    ) -> None:
        self.trunk = trunk
        self.batches = batches
        self._pause = pause

    def write(self, target: CachedActivations, old: CachedActivations | None) -> int:
        """Write every entry of `target`, advancing those that `old` has from a shallower trunk.

        Args:
            target: what to write.
            old: activations of a shallower trunk; may use the same store.

        Returns:
            The number of entries that were advanced from `old`.
        """
        windows = target.windows
        known = np.zeros(len(windows), dtype=bool) if old is None else old.holds(windows)
        for slots in self._micro_batches(target, np.flatnonzero(known)):
            assert old is not None
            target.store.write(slots, self.advance(old, windows[slots]))
        for slots in self._micro_batches(target, np.flatnonzero(~known)):
            target.store.write(slots, self.compute(windows[slots]))
        target.store.finish()
        return int(known.sum())

    def repair(self, target: CachedActivations, slots: np.ndarray) -> None:
        """Compute damaged entries again and write them."""
        for part in self._micro_batches(target, slots):
            target.store.write(part, self.compute(target.windows[part]))

    def compute(self, windows: np.ndarray) -> Tensor:
        """Return the activations of windows that have different positions, from their ids."""
        return self.trunk(self.ids(self._whole_batch(windows)))[self._positions(windows)]

    def compute_any(self, windows: np.ndarray) -> Tensor:
        """Return the activations of any windows, from their ids."""
        parts, left = [], np.arange(len(windows))
        while len(left):
            _, first = np.unique(self._positions(windows[left]), return_index=True)
            parts.append((left[first], self.compute(windows[left[first]])))
            left = np.delete(left, first)
        order = np.argsort(np.concatenate([slots for slots, _ in parts]))
        return torch.cat([x for _, x in parts])[torch.from_numpy(order)]

    def advance(self, old: CachedActivations, windows: np.ndarray) -> Tensor:
        """Return the same as `compute`, from the cached activations of a shallower trunk.

        If these are damaged, the activations are computed from the ids.
        """
        try:
            x = old.read(self._whole_batch(windows))
        except DamagedEntries:
            return self.compute(windows)
        x = x.to(self.trunk.model.device, non_blocking=True)
        return self.trunk.run_from(x, old.n)[self._positions(windows)]

    def n_micro_batches(self, windows: np.ndarray) -> int:
        """Return the number of micro-batches that computing the activations of `windows` takes.

        In a random part of the text some positions have more windows than others; then some
        micro-batches are not full.
        """
        return int(np.bincount(self._positions(windows)).max(initial=0))

    def ids(self, windows: np.ndarray) -> Tensor:
        """Return the windows' ids on the model's device, [len(windows), T]."""
        return self.batches.read(windows)[0].to(self.trunk.model.device)

    def _micro_batches(self, target: CachedActivations, slots: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the slots in parts whose windows have different positions."""
        positions = self._positions(target.windows[slots])
        by_position = np.argsort(positions, kind="stable")
        starts = np.cumsum(np.bincount(positions, minlength=self.batches.batch_size))
        # The number of slots of the same position before each slot: the index of its part.
        turn = np.empty_like(slots)
        turn[by_position] = np.arange(len(slots)) - np.append(0, starts)[positions[by_position]]
        in_parts = slots[np.argsort(turn, kind="stable")]
        for part in np.split(in_parts, np.cumsum(np.bincount(turn))[:-1]) if len(slots) else ():
            self._pause()
            yield part

    def _positions(self, windows: np.ndarray) -> np.ndarray:
        return windows % self.batches.batch_size

    def _whole_batch(self, windows: np.ndarray) -> np.ndarray:
        """Return a full micro-batch: the windows at their positions, the first one elsewhere."""
        batch = np.full(self.batches.batch_size, windows[0])
        batch[self._positions(windows)] = windows
        return batch


class CachedBatches:
    """An iterator of (activations, targets), [B, T, d_model] and int64 [B, T], as `batches` orders.

    Entries in a file are read ahead by a thread. `state_dict` has the position of the batches that
    were returned, so a run may be resumed with or without the cache.

    Args:
        batches: decides which windows come next.
        activations: of every planned window.
        repair: called with damaged slots; writes their entries again.
        ahead: number of batches to read in advance; 0 reads each when it is requested.
        compute: returns the activations of windows that are not cached.
    """

    def __init__(
        self,
        batches: Batches,
        activations: CachedActivations,
        repair: Callable[[np.ndarray], None],
        ahead: int = 0,
        *,
        compute: Callable[[np.ndarray], torch.Tensor],
    ) -> None:
        self._batches = batches
        self._activations = activations
        self._repair = repair
        self._compute = compute
        self._ahead = ahead
        self._state = batches.state_dict()
        self._waiting: deque[tuple[np.ndarray, dict[str, Any], Future[torch.Tensor]]] = deque()
        self._thread = ThreadPoolExecutor(1, "cached-activations") if ahead else None

    @property
    def stream(self) -> Any:
        return self._batches.stream

    @property
    def seq_len(self) -> int:
        return self._batches.seq_len

    @property
    def tokens_per_batch(self) -> int:
        return self._batches.tokens_per_batch

    def __iter__(self) -> CachedBatches:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._thread is None:
            windows = self._batches.next_windows()
            self._state = self._batches.state_dict()
            return self._read(windows), self._targets(windows)
        while len(self._waiting) < self._ahead:
            windows = self._batches.next_windows()
            future = self._thread.submit(self._read_ahead, windows, _current_stream())
            self._waiting.append((windows, self._batches.state_dict(), future))
        windows, self._state, future = self._waiting.popleft()
        try:
            x = future.result()
        except (DamagedEntries, MissingEntry):
            x = self._read(windows)
        return x, self._targets(windows)

    def _read_ahead(self, windows: np.ndarray, stream: torch.cuda.Stream | None) -> torch.Tensor:
        # A new thread starts with the default stream of the first GPU, but its results are used on
        # the caller's stream. If `stream` is None, this context does nothing.
        with torch.cuda.stream(stream):
            return self._activations.read(windows)

    def _read(self, windows: np.ndarray) -> torch.Tensor:
        try:
            return self._activations.read(windows)
        except DamagedEntries as damaged:
            self._repair(damaged.slots)
        except MissingEntry:
            return self._compute(windows)
        return self._activations.read(windows)

    def _targets(self, windows: np.ndarray) -> torch.Tensor:
        return self._batches.read(windows)[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `batches` after the batches that were returned."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of cached or plain batches."""
        self._cancel()
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()

    def close(self) -> None:
        """Stop the thread."""
        self._cancel()
        if self._thread is not None:
            self._thread.shutdown()

    def _cancel(self) -> None:
        for *_, future in self._waiting:
            future.cancel()
        self._waiting.clear()


def _current_stream() -> torch.cuda.Stream | None:
    """Return the caller's CUDA stream; None if no GPU is in use."""
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None

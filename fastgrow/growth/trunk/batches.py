"""Batches whose ids have gone through the trunk already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastgrow.growth.trunk.rows import MissingRows, TrunkRows
from fastgrow.growth.trunk.store import DamagedRows
from fastgrow.training import Batches

# One batch is read while the other waits to be taken.
AHEAD = 2


class CachedBatches:
    """An iterator of (rows, targets), [B, T, d_model] and int64 [B, T], in the order of `batches`.

    Rows that lie in a file are read ahead by a thread. The position that is saved is that of the
    batches which were handed out, so a run may go on with or without the cache.

    Args:
        batches: says which windows come next.
        rows: of every window that will come.
        repair: called with damaged slots; writes their rows anew.
        ahead: batches to read in advance; 0 reads each when it is asked for.
        compute: gives the rows of windows that have none.
    """

    def __init__(
        self,
        batches: Batches,
        rows: TrunkRows,
        repair: Callable[[np.ndarray], None],
        ahead: int = 0,
        *,
        compute: Callable[[np.ndarray], torch.Tensor],
    ) -> None:
        self._batches = batches
        self._rows = rows
        self._repair = repair
        self._compute = compute
        self._ahead = ahead
        self._state = batches.state_dict()
        self._waiting: deque[tuple[np.ndarray, dict[str, Any], Future[torch.Tensor]]] = deque()
        self._thread = ThreadPoolExecutor(1, "trunk-rows") if ahead else None

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
            future = self._thread.submit(self._read_ahead, windows, _stream())
            self._waiting.append((windows, self._batches.state_dict(), future))
        windows, self._state, future = self._waiting.popleft()
        try:
            rows = future.result()
        except (DamagedRows, MissingRows):
            rows = self._read(windows)
        return rows, self._targets(windows)

    def _read_ahead(self, windows: np.ndarray, stream: torch.cuda.Stream | None) -> torch.Tensor:
        # A thread begins with the default stream of the first GPU; what it makes is used on the
        # caller's. Without a stream this does nothing.
        with torch.cuda.stream(stream):
            return self._rows.read(windows)

    def _read(self, windows: np.ndarray) -> torch.Tensor:
        try:
            return self._rows.read(windows)
        except DamagedRows as damaged:
            self._repair(damaged.slots)
        except MissingRows:
            return self._compute(windows)
        return self._rows.read(windows)

    def _targets(self, windows: np.ndarray) -> torch.Tensor:
        return self._batches.read(windows)[1]

    def state_dict(self) -> dict[str, Any]:
        """That of the batches that were handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of these or of plain batches."""
        self._forget()
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()

    def close(self) -> None:
        """End the thread."""
        self._forget()
        if self._thread is not None:
            self._thread.shutdown()

    def _forget(self) -> None:
        for *_, future in self._waiting:
            future.cancel()
        self._waiting.clear()


def _stream() -> torch.cuda.Stream | None:
    """The caller's, where a GPU is in use."""
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None

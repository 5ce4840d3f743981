"""Batches of token windows in a seeded order that can be resumed at any point."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fastgrow.errors import CheckpointError, ConfigError, DataError
from fastgrow.training.data.counter import derive_key, permutation, uniform
from fastgrow.training.data.stream import MixedStream, TokenStream

IGNORE_INDEX = -100
# Number of windows whose parts are drawn at once when only the counts are needed.
_AT_ONCE = 1 << 20


class Batches:
    """An endless iterator of (ids, targets), both int64 of shape [batch_size, seq_len].

    A stream of n tokens is cut into windows of seq_len + 1 tokens that start every seq_len tokens,
    so each token is a target once; the last window is shifted back to end with the stream. An epoch
    visits all windows in an order drawn from (seed, part, epoch). With a mixture, the part of the
    run's i-th window is drawn from (seed, i). Targets that are `<s>` or padding are set to -100
    (ignored), since which document follows cannot be learned.

    The position is one count of windows for each part. A resumed iterator continues in the middle
    of an epoch with exactly the windows that the interrupted one would have returned.

    Args:
        stream: a split of a `TextData` or `Mixture`.
        batch_size: number of windows in a batch.
        seq_len: number of tokens in a window.
        seed: random seed of the order.

    Raises:
        ConfigError: batch_size or seq_len is not positive.
        DataError: a stream is shorter than one window.
    """

    def __init__(
        self, stream: TokenStream | MixedStream, batch_size: int, seq_len: int, seed: int = 0
    ) -> None:
        if batch_size < 1 or seq_len < 1:
            raise ConfigError(
                "batch_size and seq_len must be at least 1, "
                f"got batch_size={batch_size}, seq_len={seq_len}"
            )
        self.stream = stream
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        parts = stream.parts if isinstance(stream, MixedStream) else [(stream, 1.0)]
        self._streams = [part for part, _ in parts]
        self._bounds = np.cumsum([weight for _, weight in parts])[:-1]
        for part in self._streams:
            if len(part) < seq_len + 1:
                raise DataError(
                    f"{part.name}: {len(part)} tokens are fewer than one window of seq_len + 1 = "
                    f"{seq_len + 1}; provide more text or a smaller seq_len"
                )
        self._windows = [-(-(len(part) - 1) // seq_len) for part in self._streams]
        self._bases = np.cumsum([0, *self._windows[:-1]])
        self._taken = [0] * len(self._streams)
        self._choice_key = derive_key(seed, "choice")
        self._offsets = np.arange(seq_len + 1)
        # A batch contains windows of at most two epochs, unless a part is smaller than a batch.
        self._order = lru_cache(maxsize=2 * len(self._streams))(self._draw_order)

    @property
    def tokens_per_batch(self) -> int:
        """Number of tokens in a batch."""
        return self.batch_size * self.seq_len

    @property
    def n_windows(self) -> int:
        """Total number of windows of all parts."""
        return sum(self._windows)

    @property
    def epochs(self) -> list[float]:
        """Number of epochs read so far, for each part."""
        return [taken / size for taken, size in zip(self._taken, self._windows, strict=True)]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.read(self.next_windows())

    def next_windows(self) -> np.ndarray:
        """Return the indices of the next batch's windows, int64 [batch_size], and advance.

        Windows are numbered consecutively over the parts of the stream, from 0.
        """
        windows = np.empty(self.batch_size, dtype=np.int64)
        choices = self._choose(sum(self._taken), self.batch_size)
        for part, base in enumerate(self._bases):
            mine = np.flatnonzero(choices == part)
            if len(mine):
                windows[mine] = base + self._take(part, len(mine))
        return windows

    def read(self, windows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and targets of the given windows, both int64 [len(windows), seq_len]."""
        rows = np.empty((len(windows), self.seq_len + 1), dtype=np.int64)
        parts = np.searchsorted(self._bases, windows, side="right") - 1
        for part, stream in enumerate(self._streams):
            mine = np.flatnonzero(parts == part)
            if len(mine):
                last = len(stream) - 1 - self.seq_len
                starts = np.minimum((windows[mine] - self._bases[part]) * self.seq_len, last)
                rows[mine] = stream.ids[starts[:, None] + self._offsets]
        targets = rows[:, 1:].copy()
        substrate = self.stream.substrate
        targets[(targets == substrate.bos_id) | (targets == substrate.pad_id)] = IGNORE_INDEX
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets)

    def skip(self, batches: int) -> None:
        """Advance by a number of batches without reading them."""
        for taken in self._chosen(batches * self.batch_size):
            self._taken = [old + int(new) for old, new in zip(self._taken, taken, strict=True)]

    def windows_of(self, batches: int) -> np.ndarray:
        """Return the distinct windows of the next `batches` batches, in ascending order."""
        counts = np.zeros(len(self._streams), dtype=np.int64)
        for chosen in self._chosen(batches * self.batch_size):
            counts += chosen
            # `batches` may be arbitrarily large; stop once all windows are covered.
            if (counts >= self._windows).all():
                break
        seen = []
        for part, (base, size) in enumerate(zip(self._bases, self._windows, strict=True)):
            count, first = int(counts[part]), self._taken[part]
            if count >= size:
                windows = np.arange(size)
            else:
                # Fewer than all windows: they are in the current epoch and possibly the next one.
                epoch, begin = divmod(first, size)
                order = self._order(part, epoch)
                if begin + count > size:
                    order = np.concatenate([order, self._order(part, epoch + 1)])
                windows = np.unique(order[begin : begin + count])
            seen.append(base + windows)
        return np.concatenate(seen)

    def _chosen(self, total: int) -> Iterator[np.ndarray]:
        """Yield, in chunks, how many of the next `total` windows come from each part."""
        first = sum(self._taken)
        for begin in range(first, first + total, _AT_ONCE):
            choices = self._choose(begin, min(_AT_ONCE, first + total - begin))
            yield np.bincount(choices, minlength=len(self._streams))

    def _choose(self, first: int, count: int) -> np.ndarray:
        """Return the parts of the run's windows first … first + count - 1."""
        if len(self._streams) == 1:
            return np.zeros(count, dtype=np.int64)
        draws = uniform(self._choice_key, np.arange(first, first + count))
        return np.searchsorted(self._bounds, draws, side="right")

    def _take(self, part: int, count: int) -> np.ndarray:
        """Return the next `count` windows of a part, numbered within the part, and advance."""
        first, size = self._taken[part], self._windows[part]
        self._taken[part] += count
        return np.array(
            [self._order(part, i // size)[i % size] for i in range(first, first + count)]
        )

    def _draw_order(self, part: int, epoch: int) -> np.ndarray:
        return permutation(derive_key(self.seed, "order", part, epoch), self._windows[part])

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the identity of the data, independent of the corpus size."""
        return {"taken": list(self._taken), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position in `state`.

        Raises:
            CheckpointError: the state belongs to different data, a different seed or a different
                batch shape.
        """
        for name, expected in self._identity().items():
            if state.get(name) != expected:
                raise CheckpointError(
                    f"the data cursor was saved with {name}={state.get(name)!r}, "
                    f"this run has {name}={expected!r}; resume with the same data and settings"
                )
        self._taken = [int(taken) for taken in state["taken"]]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "substrate": self.stream.substrate.fingerprint,
            "data": self.stream.digest,
        }

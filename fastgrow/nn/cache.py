"""Key/value cache: stores keys and values of earlier tokens, so that they are not recomputed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastgrow.errors import ArgumentError


def repeat_cache(cache: Any, times: int) -> Any | None:
    """Return a copy of a cache in which each sequence is repeated `times` times in succession.

    With it, several continuations of one text process the text only once. Returns None if the cache
    (of a user's own model) has no method `repeated(times)`.
    """
    repeated = getattr(cache, "repeated", None)
    return None if repeated is None else repeated(times)


class LayerCache:
    """Rotated keys and values of one block, each [B, H_kv, max_len, D].

    All sequences of the batch have the same length. Memory is allocated when it is needed, in
    powers of two.
    """

    def __init__(self, batch_size: int, max_len: int) -> None:
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, H_kv, T, D] keys and values; return all keys and values as views.

        Raises:
            ArgumentError: the batch size is not the cache's, or there are more tokens than fit.
        """
        batch, heads, added, dim = keys.shape
        _check_capacity(self, batch, added)
        end = self.length + added
        if self._keys is None or self._values is None or self._keys.shape[2] < end:
            capacity = min(self.max_len, max(64, 1 << (end - 1).bit_length()))
            self._keys = self._grown(self._keys, keys.new_empty(batch, heads, capacity, dim))
            self._values = self._grown(self._values, values.new_empty(batch, heads, capacity, dim))
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def repeated(self, times: int) -> LayerCache:
        """Return a copy with each sequence repeated `times` times."""
        copy = LayerCache(self.batch_size * times, self.max_len)
        copy.length = self.length
        if self._keys is not None and self._values is not None:
            copy._keys = self._keys[:, :, : self.length].repeat_interleave(times, dim=0)
            copy._values = self._values[:, :, : self.length].repeat_interleave(times, dim=0)
        return copy

    def _grown(self, old: Tensor | None, new: Tensor) -> Tensor:
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


class KVCache:
    """Key/value cache of a decoder, with a `LayerCache` for each block.

    Args:
        n_layer: number of blocks.
        batch_size: number of sequences, which all have the same length.
        max_len: maximum number of tokens per sequence.
    """

    def __init__(self, n_layer: int, batch_size: int, max_len: int) -> None:
        self.layers = [LayerCache(batch_size, max_len) for _ in range(n_layer)]
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0

    def begin(self, ids: Tensor, n_layer: int) -> None:
        """Check that ids [B, T] fit, before any block processes them.

        Raises:
            ArgumentError: the batch size or the number of blocks is not the cache's, or there are
                more tokens than fit.
        """
        if n_layer != len(self.layers):
            raise ArgumentError(
                f"cache: made for {len(self.layers)} blocks, but the model has {n_layer}"
            )
        _check_capacity(self, ids.shape[0], ids.shape[1])

    def advance(self, added: int) -> None:
        """Increase the length by tokens that every block has processed."""
        self.length += added

    def repeated(self, times: int) -> KVCache:
        """Return a copy with each sequence repeated `times` times in succession."""
        copy = KVCache(0, self.batch_size * times, self.max_len)
        copy.layers = [layer.repeated(times) for layer in self.layers]
        copy.length = self.length
        return copy


def _check_capacity(cache: LayerCache | KVCache, batch_size: int, added: int) -> None:
    if batch_size != cache.batch_size:
        raise ArgumentError(
            f"cache: made for a batch of {cache.batch_size}, got a batch of {batch_size}"
        )
    if cache.length + added > cache.max_len:
        raise ArgumentError(
            f"cache: holds at most {cache.max_len} tokens, got {added} after {cache.length}"
        )

"""The cache of an ensemble for incremental decoding."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy as shallow_copy
from typing import Any

from torch import Tensor

from fastgrow.compose.rules import Rule
from fastgrow.errors import ArgumentError
from fastgrow.nn import repeat_cache


class EnsembleCache:
    """The experts' caches and the state of the rule.

    Args:
        caches: one cache per expert, by name.
        rule: the current rule of the ensemble.
        batch_size: number of sequences.
        max_len: maximum number of tokens per sequence.
    """

    def __init__(self, caches: dict[str, Any], rule: Rule, batch_size: int, max_len: int) -> None:
        self.caches = caches
        self.rule_kind = rule.kind
        self.state = rule.new_state()
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0

    def repeated(self, times: int) -> EnsembleCache | None:
        """Repeat each sequence `times` times; None if an expert's cache cannot be copied."""
        caches = {name: repeat_cache(cache, times) for name, cache in self.caches.items()}
        if None in caches.values():
            return None
        copy = shallow_copy(self)
        copy.caches, copy.state = caches, self.state.repeated(times)
        copy.batch_size = self.batch_size * times
        return copy

    def begin(self, ids: Tensor, names: Sequence[str], rule: Rule) -> None:
        """Check that ids [B, T] fit, before they are passed to any expert.

        Raises:
            ArgumentError: the batch size differs, there are more tokens than fit, or the experts
                or the kind of rule of the ensemble have changed since the cache was made.
        """
        if tuple(self.caches) != tuple(names):
            raise ArgumentError(
                f"cache: made for the experts {', '.join(self.caches)}, "
                f"but the ensemble has {', '.join(names)}; make a new one"
            )
        if rule.kind != self.rule_kind:
            raise ArgumentError(
                f"cache: made under the rule {self.rule_kind!r}, but the ensemble's is now "
                f"{rule.kind!r}; make a new one"
            )
        if ids.shape[0] != self.batch_size:
            raise ArgumentError(
                f"cache: made for a batch of {self.batch_size}, got a batch of {ids.shape[0]}"
            )
        if self.length + ids.shape[1] > self.max_len:
            raise ArgumentError(
                f"cache: holds at most {self.max_len} tokens, "
                f"got {ids.shape[1]} after {self.length}"
            )

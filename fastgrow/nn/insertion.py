"""Positions of new blocks in a stack, and the blocks that they copy."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.errors import ConfigError


def insertion_indices(old: int, n: int, at: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the indices of `n` new blocks in the stack after their insertion.

    Args:
        old: number of old blocks.
        n: number of new blocks.
        at: for each new block, the index of the old block that it is inserted before, in ascending
            order; `old` means on top. None to add all on top.

    Raises:
        ConfigError: `at` is not n ascending indices in [0, old].
    """
    places = (old,) * n if at is None else tuple(at)
    if len(places) != n or list(places) != sorted(places):
        raise ConfigError(f"at: expected {n} ascending indices, got {places}")
    if places and not 0 <= places[0] <= places[-1] <= old:
        raise ConfigError(
            f"at: there are {old} old blocks, so indices are 0 to {old}, got {places}"
        )
    return tuple(place + i for i, place in enumerate(places))


def copied_blocks(
    old: int, n: int, at: Sequence[int] | None = None, copy_of: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the index of the old block that each new block copies.

    Args:
        old, n, at: as for `insertion_indices`.
        copy_of: the indices, if the caller chooses them. None for the blocks below each position: k
            blocks inserted at one position copy the k old blocks below it in order, repeatedly if
            there are fewer than k.

    Raises:
        ConfigError: an index is out of range, or there is no block below a position.
    """
    if copy_of is not None:
        sources = tuple(copy_of)
        if len(sources) != n or not all(0 <= source < old for source in sources):
            raise ConfigError(f"copy_of: expected {n} indices of {old} old blocks, got {sources}")
        return sources
    places = (old,) * n if at is None else tuple(at)
    if 0 in places:
        raise ConfigError("copy_of: there is no block below position 0 to copy")
    first = {place: places.index(place) for place in places}
    return tuple((i - first[place] - places.count(place)) % place for i, place in enumerate(places))

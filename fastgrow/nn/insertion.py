"""Where new blocks go in a stack, and which blocks they copy."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.errors import ConfigError


def insertion_indices(old: int, n: int, at: Sequence[int] | None = None) -> tuple[int, ...]:
    """The indices of `n` new blocks in the stack that they make with `old` blocks.

    Args:
        old: blocks that are there.
        n: new blocks.
        at: for each new block the index of the old block it goes before, ascending; `old` is on
            top, and so is None.

    Raises:
        ConfigError: `at` is not n ascending indices in [0, old].
    """
    places = (old,) * n if at is None else tuple(at)
    if len(places) != n or list(places) != sorted(places):
        raise ConfigError(f"at: expected {n} ascending indices, got {places}")
    if places and not 0 <= places[0] <= places[-1] <= old:
        raise ConfigError(f"at: there are {old} old blocks to go before, got {places}")
    return tuple(place + i for i, place in enumerate(places))


def copied_blocks(
    old: int, n: int, at: Sequence[int] | None = None, copy_of: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The old block that each new one copies.

    Args:
        old, n, at: as `insertion_indices`.
        copy_of: the answer, if it is the caller's; None for those below each place: k blocks put
            in at one place copy the k below it in order, starting again where there are fewer.

    Raises:
        ConfigError: an index is out of range, or there is no block below.
    """
    if copy_of is not None:
        sources = tuple(copy_of)
        if len(sources) != n or not all(0 <= source < old for source in sources):
            raise ConfigError(f"copy_of: expected {n} indices of {old} old blocks, got {sources}")
        return sources
    places = (old,) * n if at is None else tuple(at)
    if 0 in places:
        raise ConfigError("copy_of: there is no block below the lowest place to copy")
    first = {place: places.index(place) for place in places}
    return tuple((i - first[place] - places.count(place)) % place for i, place in enumerate(places))

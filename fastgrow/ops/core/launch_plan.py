"""How a GPU's work on K experts' logits is cut up: rows, parts of rows, threads of a block.

A block works on one part of one row, or, where rows are short, each of its warps on one row. Many
rows are work enough for the whole chip; few rows are cut into parts until there are two blocks for
each multiprocessor of the largest GPU that the extension is built for. What the parts leave behind
is put together by a second kernel, in their order, so that the same input gives the same bits.

The extension gets the plan with its arguments (extension.py, csrc/cuda/launch.h); it has no rules
of its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

WARP = 32
MOST_THREADS = 256
# 16 bytes, which a thread loads at once; it has two such loads of each expert in flight.
PACK_BYTES = 16
IN_FLIGHT = 2
# Rows of which a warp has no more than this many loads of an expert to make are a warp's work.
LOADS_OF_A_WARP = 4
# Two blocks for each of an H200's 132 multiprocessors.
FEWEST_BLOCKS = 264
# Enough to fill a GPU several times over: more parts would only be shorter.
MANY_BLOCKS = 8192
# Blocks of a grid at a time, or about so many; each goes on to further rows. CUDA's own limit is
# that of a grid's second dimension.
MOST_BLOCKS = 16384
CUDA_LIMIT = 65535
# Columns that a part has at least, where a block's own work on a part is much beside reading it: a
# block looks for the largest among so many at a time.
SHORTEST = {"mean_top_k": 2048}
# And at most, where a part is read a second time: the one in which a number is drawn. With cuts the
# most likely tokens are looked for instead, as in `mean_top_k`.
LONGEST = {"mean_sample": 4096}
# The memory of an H200 moves about this much in a second.
BYTES_PER_SECOND = 4e12


class Plan(NamedTuple):
    """One launch.

    Args:
        threads: of a block.
        rows_per_block: rows that a block works on at the same time; where it is more than one, a
            warp has a row to itself.
        parts: of a row; each is a block's work.
        length: columns of a part, a multiple of a load's; the last part may be shorter.
        at_a_time: rows, or as many rows as a block works on, that a grid has blocks for.
    """

    threads: int
    rows_per_block: int
    parts: int
    length: int
    at_a_time: int

    def blocks(self, rows: int) -> int:
        """How many blocks the rows are worked on by, if all are there at a time."""
        return -(-rows // self.rows_per_block) * self.parts


@functools.cache
def launch_plan(operation: str, rows: int, columns: int, itemsize: int) -> Plan:
    """The plan of an operation's kernels, of either direction, for N rows of V logits.

    Args:
        operation: its name in the dispatch.
        rows, columns: N and V, at least 1.
        itemsize: bytes of a logit.
    """
    shortest, longest = SHORTEST.get(operation, 0), LONGEST.get(operation, 0)
    pack = PACK_BYTES // itemsize
    if columns <= LOADS_OF_A_WARP * WARP * pack and not shortest:
        per_block = MOST_THREADS // WARP
        at_a_time = min(-(-rows // per_block), MOST_BLOCKS)
        return Plan(MOST_THREADS, per_block, 1, _up(columns, pack), at_a_time)
    whole = MOST_THREADS * IN_FLIGHT * pack
    parts = min(columns // whole, MANY_BLOCKS // rows)
    if rows * parts < FEWEST_BLOCKS:
        parts = min(-(-FEWEST_BLOCKS // rows), columns // max(shortest, WARP * pack))
    length = _up(-(-columns // max(parts, 1)), pack)
    if longest:
        length = min(length, longest)
    parts = -(-columns // length)
    threads = WARP
    while threads < MOST_THREADS and threads * IN_FLIGHT * pack < length:
        threads *= 2
    at_a_time = min(rows, max(1, MOST_BLOCKS // parts), CUDA_LIMIT)
    return Plan(MOST_THREADS if shortest else threads, 1, parts, length, at_a_time)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def seconds(bytes_moved: int) -> float:
    """What moving them takes at least, on an H200."""
    return bytes_moved / BYTES_PER_SECOND

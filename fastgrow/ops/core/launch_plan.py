"""Split a GPU's work on K experts' logits into thread blocks: rows, parts of rows, threads.

A thread block works on one part of one row; if rows are short, each of its warps works on one row.
Many rows keep the whole GPU busy; few rows are split into parts until there are two thread blocks
for each multiprocessor of the largest GPU that the extension is built for. A second kernel combines
the results of the parts in a fixed order, so that results are bitwise reproducible.

The extension receives the plan with its arguments (extension.py, csrc/cuda/launch.h) and makes no
such decision itself.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

WARP = 32
MOST_THREADS = 256
# A thread loads 16 bytes at once and has two such loads of each expert in flight.
PACK_BYTES = 16
IN_FLIGHT = 2
# A row is the work of one warp if the warp needs at most this many loads of each expert.
LOADS_OF_A_WARP = 4
# Two blocks for each of an H200's 132 multiprocessors.
FEWEST_BLOCKS = 264
# Enough to fill a GPU several times over: more parts would only be shorter.
MANY_BLOCKS = 8192
# Approximate number of blocks of a grid; each block loops over further rows. CUDA_LIMIT is the
# limit of a grid's second dimension.
MOST_BLOCKS = 16384
CUDA_LIMIT = 65535
# Minimum number of columns of a part, for operations that do much work per part in addition to
# reading it: a block searches the largest values among this many columns at a time.
SHORTEST = {"mean_top_k": 2048}
# Maximum number of columns of a part, if one part is read twice: the one that a token is drawn
# from. With `top_k` or `top_p` the most likely tokens are searched instead, as in `mean_top_k`.
LONGEST = {"mean_sample": 4096}
# Approximate memory bandwidth of an H200.
BYTES_PER_SECOND = 4e12


class Plan(NamedTuple):
    """Launch parameters of one kernel.

    Args:
        threads: number of threads of a block.
        rows_per_block: rows that a block works on at the same time; if more than one, each warp
            works on one row.
        parts: number of parts of a row; each is the work of one block.
        length: columns of a part, a multiple of a load's; the last part may be shorter.
        at_a_time: number of rows, or of groups of `rows_per_block` rows, that a grid has blocks
            for.
    """

    threads: int
    rows_per_block: int
    parts: int
    length: int
    at_a_time: int

    def blocks(self, rows: int) -> int:
        """Return the number of blocks for this many rows, if all run at the same time."""
        return -(-rows // self.rows_per_block) * self.parts


@functools.cache
def launch_plan(operation: str, rows: int, columns: int, itemsize: int) -> Plan:
    """Return the plan of an operation's kernels, forward and backward, for N rows of V logits.

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
    """Return the minimum time to move this many bytes on an H200."""
    return bytes_moved / BYTES_PER_SECOND

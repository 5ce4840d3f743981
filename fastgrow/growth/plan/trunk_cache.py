"""Whether keeping the frozen trunk's output pays, and where it would lie.

Without a cache every pass over the text costs the trunk's forward pass. With one, the first pass
costs the same once (or, where the trunk of the stage before was kept, the blocks that are new to it
alone) and the writing, and every pass the reading. Text read R times therefore gains where

    first pass / R + bytes / bandwidth  <  trunk's forward pass
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgrow.growth.plan.timing import fastest

PROBE_BYTES = 32 << 20


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second: from main memory to where the model is, and to and from files."""

    memory: float
    disk_read: float
    disk_write: float


@dataclass(frozen=True)
class CachePlan:
    """What a cache of one stage's trunk takes and gives.

    Attributes:
        bytes_per_token: of the trunk's output.
        saved_flops: of the trunk's forward pass, for one token.
        bytes: of the whole cache; None where the size of the text is not known.
        place: "ram" or "disk".
        passes: how often the stage reads the text (R); None where its size is not known.
        pays_from: the least number of passes with which it pays; None where it never does, or was
            not measured.
        pays: whether it does; None where that is not known.
    """

    bytes_per_token: int
    saved_flops: int
    bytes: int | None = None
    place: str = "ram"
    passes: float | None = None
    pays_from: float | None = None
    pays: bool | None = None


def plan_cache(
    *,
    bytes_per_token: int,
    saved_flops: int,
    tokens: int,
    corpus_tokens: int | None,
    free_memory: int | None,
    trunk_seconds: float | None,
    new_seconds: float | None,
    bandwidth: Bandwidth | None,
) -> CachePlan:
    """Weigh it.

    Args:
        bytes_per_token: of the trunk's output.
        saved_flops: of the trunk's forward pass, for one token.
        tokens: that the stage trains on.
        corpus_tokens: in the text; None where that is not known.
        free_memory: bytes; half of it is left to others.
        trunk_seconds: the trunk's forward pass, for one token; None where it was not measured.
        new_seconds: of what the first pass computes: the trunk, or its newest blocks alone.
        bandwidth: None where it was not measured.
    """
    whole = None if corpus_tokens is None else corpus_tokens * bytes_per_token
    fits = whole is None or free_memory is None or whole <= free_memory // 2
    place = "ram" if fits else "disk"
    passes = None if corpus_tokens is None else tokens / corpus_tokens
    pays_from, pays = None, None
    if trunk_seconds is not None and new_seconds is not None and bandwidth is not None:
        read = bytes_per_token / (bandwidth.memory if fits else bandwidth.disk_read)
        write = bytes_per_token / (bandwidth.memory if fits else bandwidth.disk_write)
        if read < trunk_seconds:
            pays_from = (new_seconds + write) / (trunk_seconds - read)
        if passes is not None:
            pays = pays_from is not None and passes > pays_from
    return CachePlan(bytes_per_token, saved_flops, whole, place, passes, pays_from, pays)


def measure_bandwidth(device: torch.device, folder: Path | None = None) -> Bandwidth:
    """Copy a block of memory, and write and read a file in `folder` (the temporary one)."""
    source = torch.ones(PROBE_BYTES // 4)
    target = torch.empty_like(source, device=device)
    seconds = fastest({"copy": lambda: target.copy_(source)}, device, budget=0.3)["copy"]
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        data = memoryview(source.numpy()).cast("B")
        write = min(_timed(lambda: _write(file.fileno(), data)) for _ in range(2))
        read = min(_timed(lambda: _read(file.fileno())) for _ in range(2))
    return Bandwidth(PROBE_BYTES / seconds, PROBE_BYTES / read, PROBE_BYTES / write)


def _write(file: int, data: memoryview) -> None:
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, data)
    os.fsync(file)


def _read(file: int) -> None:
    # What was just written is in memory, and would be read from there.
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    while os.read(file, 1 << 20):
        pass


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started

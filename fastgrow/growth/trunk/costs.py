"""A short measurement of what running a block costs here, and what keeping its output does."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgrow.growth.trunk.disk import PROBE, DiskStore
from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.store import MemoryStore, RowStore

_RUNS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds for one micro-batch.

    Attributes:
        block: one frozen block's forward pass.
        places: reading from, and writing to, each place that there is, by its name.
    """

    block: float
    places: dict[str, tuple[float, float]]


def measure_costs(trunk: FrozenTrunk, x: Tensor, folder: Path | None) -> Costs:
    """Time the top block of the trunk, and one batch in each place; the best of three.

    Args:
        trunk: of at least one block.
        x: the trunk's output for a batch.
        folder: where files would lie; None leaves the disk out.
    """
    block = _best(lambda: trunk.onward(x, trunk.n - 1), x.device)
    return Costs(block, measure_places(x, folder))


def measure_places(x: Tensor, folder: Path | None) -> dict[str, tuple[float, float]]:
    """Seconds to read, and to write, one batch in each place that there is, by its name.

    Args:
        x: a batch of rows, on the model's device.
        folder: where files would lie; None leaves the disk out.
    """
    places = {}
    for place in ("device", "ram") if x.device.type == "cuda" else ("ram",):
        places[place] = _of_store(MemoryStore(place, tuple(x.shape), x), x)
    if folder is not None:
        with contextlib.suppress(OSError):
            places["disk"] = _of_disk(x, folder)
    return places


def _of_disk(x: Tensor, folder: Path) -> tuple[float, float]:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=PROBE, dir=folder))
    try:
        shape = (x.shape[1], x.shape[2])
        store = DiskStore.create(scratch, {}, np.arange(len(x)), shape, x.dtype)
        try:
            return _of_store(store, x, forget=store.forget)
        finally:
            store.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _of_store(
    store: RowStore, x: Tensor, forget: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    slots = np.arange(len(x))
    write = _best(lambda: store.write(slots, x), x.device)

    def read() -> None:
        store.read(slots).to(x.device)

    return _best(read, x.device, forget), write


def _best(
    run: Callable[[], object], device: torch.device, before: Callable[[], None] = lambda: None
) -> float:
    seconds = []
    for _ in range(_RUNS):
        before()
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(place: str, device: torch.device, folder: Path | None) -> int:
    """What a place has left, with a reserve for everybody else."""
    if place == "disk":
        assert folder is not None
        try:
            there = next(p for p in (folder, *folder.parents) if p.exists())
            return int(0.95 * shutil.disk_usage(there).free)
        except OSError:
            # Where one may not even look there is no room for rows.
            return 0
    if place == "device" and device.type == "cuda":
        return int(0.5 * torch.cuda.mem_get_info(device)[0])
    return int(0.5 * available_memory())


def available_memory() -> int:
    """Bytes of main memory that a new process could use."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

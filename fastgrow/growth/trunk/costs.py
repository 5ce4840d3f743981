"""Measured costs on this machine: running a frozen block, and reading and writing activations."""

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

from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.stores import PROBE, ActivationStore, DiskStore, MemoryStore

_RUNS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds for one micro-batch.

    Attributes:
        block: one frozen block's forward pass.
        places: seconds to read from, and to write to, each available place, by its name.
    """

    block: float
    places: dict[str, tuple[float, float]]


def measure_costs(trunk: FrozenTrunk, x: Tensor, folder: Path | None) -> Costs:
    """Time the top block of the trunk, and one batch in each place; the best of three.

    Args:
        trunk: a trunk of at least one block.
        x: the trunk's output for a batch.
        folder: folder for files; None leaves the disk out.
    """
    block = _best(lambda: trunk.run_from(x, trunk.n - 1), x.device)
    return Costs(block, measure_places(x, folder))


def measure_places(x: Tensor, folder: Path | None) -> dict[str, tuple[float, float]]:
    """Return the seconds to read and to write one batch in each available place, by its name.

    Args:
        x: a batch of activations, on the model's device.
        folder: folder for files; None leaves the disk out.
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
            return _of_store(store, x, before_read=store.drop_page_cache)
        finally:
            store.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _of_store(
    store: ActivationStore, x: Tensor, before_read: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    slots = np.arange(len(x))
    write = _best(lambda: store.write(slots, x), x.device)

    def read() -> None:
        store.read(slots).to(x.device)

    return _best(read, x.device, before_read), write


def _best(
    run: Callable[[], object], device: torch.device, before: Callable[[], None] = lambda: None
) -> float:
    seconds = []
    for _ in range(_RUNS):
        before()
        _synchronize(device)
        started = time.perf_counter()
        run()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(place: str, device: torch.device, folder: Path | None) -> int:
    """Return the bytes that a place has left, minus a reserve for other processes."""
    if place == "disk":
        assert folder is not None
        try:
            existing = next(p for p in (folder, *folder.parents) if p.exists())
            return int(0.95 * shutil.disk_usage(existing).free)
        except OSError:
            # A folder whose disk cannot be examined is not used.
            return 0
    if place == "device" and device.type == "cuda":
        return int(0.5 * torch.cuda.mem_get_info(device)[0])
    return int(0.5 * available_memory())


def available_memory() -> int:
    """Return the bytes of main memory that a new process could use."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

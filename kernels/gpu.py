"""What launches depend on of a GPU: its compute capability and how many multiprocessors it has.

Launches on other devices, such as `meta`, are those of a GPU that is assumed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# Capability and multiprocessors of the GPU that is assumed; None: launchers take numbers of theirs.
_assumed: ContextVar[tuple[int, int | None]] = ContextVar("gpu", default=(90, None))


def capability_of(device: torch.device) -> int:
    """90 for compute capability 9.0; for other devices than CUDA's the one assumed, or 90."""
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[0]


def multiprocessors(device: torch.device, otherwise: int) -> int:
    """Those of a CUDA device; for any other, the number assumed, or `otherwise`."""
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[1] or otherwise


@contextlib.contextmanager
def assumed(*, capability: int | None = None, multiprocessors: int | None = None) -> Iterator[None]:
    """Let launches on `meta` be those of such a GPU, within a `with` and in this thread.

    Into how many parts work is split may be a constant of a kernel: what is compiled for another
    number of multiprocessors is not what that GPU launches. What is None stays as it was.
    """
    before = _assumed.get()
    token = _assumed.set((capability or before[0], multiprocessors or before[1]))
    try:
        yield
    finally:
        _assumed.reset(token)


@functools.cache
def _of_gpu(device: torch.device) -> tuple[int, int]:
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor, found.multi_processor_count

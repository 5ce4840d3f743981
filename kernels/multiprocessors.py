"""How many processors a GPU has, which says into how many parts a launch splits its work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch

_assumed: ContextVar[int | None] = ContextVar("multiprocessors", default=None)


def multiprocessors(device: torch.device, otherwise: int) -> int:
    """Those of a CUDA device; for any other, the number assumed, or `otherwise`."""
    if device.type == "cuda":
        return _of_gpu(device)
    return _assumed.get() or otherwise


@contextlib.contextmanager
def assumed(count: int | None) -> Iterator[None]:
    """Let launches on `meta` be those of a GPU with so many, within a `with` and in this thread.

    Into how many parts work is split may be a constant of a kernel: what is compiled ahead for
    another number is not what that GPU launches.
    """
    token = _assumed.set(count)
    try:
        yield
    finally:
        _assumed.reset(token)


@functools.cache
def _of_gpu(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

"""Peak memory of one run, above what was allocated before it.

On a GPU, this is the caching allocator's peak. On a CPU, the profiler reports every allocation and
deallocation of torch's allocator, and the result is the peak of their sum: it is exact for tensors
and independent of memory that malloc does not return to the system. It does not include the scratch
space inside oneDNN's and BLAS's matrix products.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory of `run` in bytes, including its result."""
    if device.type == "cuda":
        return _peak_on_gpu(run, device)
    # Kineto reports the start and end of every profile on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        # Freed only after the profile has ended, so that the result counts until then.
        result = run()
    events = profile.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    del result
    return highest(change for _, change in sorted(changes, key=lambda change: change[0]))


def highest(changes: Iterable[int]) -> int:
    """Return the highest sum of a prefix of the changes; 0 if there are none."""
    live = top = 0
    for change in changes:
        live += change
        top = max(top, live)
    return top


def _peak_on_gpu(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def memory_of_others(device: torch.device) -> int:
    """Return the bytes of a GPU that other processes and all contexts use; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))

"""Measuring a kernel's configurations when one is first needed (FASTGROW_AUTOTUNE=1).

The first launch under a key that no shipped table holds compiles all candidates of the kernel's
tunable, which takes a second or two each, and times those that do not spill and compute the same,
on inputs of the tunable's own, which other memory drives from the GPU's cache before each launch.
The fastest serves this process, and others by a file in Triton's cache ($TRITON_CACHE_DIR or
~/.triton/cache), under a key of all that it depends on: the GPU, the kernel, its source and
candidates, and the version of Triton. What has changed is thereby measured again.

`triton.autotune(cache_results=True)` keeps its choices there too. It would launch the candidates on
the caller's own tensors, whenever it is called, take one that spills or computes something else,
and time the launcher with a kernel that is shorter.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import statistics
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from fastgrow.kernels.agreement import Reference
from fastgrow.kernels.tunable import Tunable, all_tunables
from fastgrow.kernels.tuned import assumed, capability_of, forgetting, log, multiprocessors

FILE = "fastgrow_autotune.json"
WARM_UP, ROUNDS = 3, 20
# About 0.3 ms of a GPU's time, in which the host gets ahead: what lies between two events is then
# the device's time alone. `triton.testing.do_bench` does without, and a launcher may take the host
# longer than its kernel takes the device.
SPIN_CYCLES = 500_000

Configuration = dict[str, int]

_one_at_a_time = threading.Lock()
_this_thread = threading.local()
# By GPU, kernel and key; None where there is nothing to choose from.
_chosen: dict[tuple[str, str, str], Configuration | None] = {}


def choose(gpu: str, kernel: str, key: str, device: torch.device) -> Configuration | None:
    """The fastest configuration of a kernel under a launcher's key.

    Returns:
        None where no tunable has the key or no candidate runs, and, unless it is known already,
        where nothing may be measured now.
    """
    name = (gpu, kernel, key)
    # A measurement launches too.
    if name not in _chosen and not getattr(_this_thread, "measuring", False):
        with _one_at_a_time:
            if name not in _chosen:
                _find(*name, device)
    return _chosen.get(name)


def may_measure() -> bool:
    """Not while a CUDA graph is captured or torch.compile traces.

    Nor where runs are to be the same: which candidate is fastest may differ from run to run.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.are_deterministic_algorithms_enabled()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _find(gpu: str, kernel: str, key: str, device: torch.device) -> None:
    """Read or measure the configuration, unless that has to wait."""
    tunable = _tunable(kernel, key, capability_of(device))
    found = None if tunable is None else _kept(tunable, gpu)
    if tunable is not None and found is None:
        if not may_measure():
            return
        try:
            with _alone(device):
                times = measure(tunable)
            _, found = min(times, key=lambda time: time[0])
            _cache(tunable, gpu).put(
                json.dumps({"configuration": found, "milliseconds": times}), FILE, binary=False
            )
        except Exception as error:
            # Whatever it is, the launch that asked can do without.
            warnings.warn(f"autotuning {kernel} {key}: {error}", stacklevel=5)
    _chosen[gpu, kernel, key] = found


@functools.cache
def _tunable(kernel: str, key: str, capability: int) -> Tunable[Any] | None:
    """Made once: where nothing may be measured every launch asks for it, and for its digest."""
    return next(
        (t for t in all_tunables(capability) if (t.kernel, t.bucket) == (kernel, key)), None
    )


forgetting += [_chosen.clear, _tunable.cache_clear]


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """On the device, leaving its random numbers as they were, and without measuring within."""
    _this_thread.measuring = True
    try:
        with (
            torch.cuda.device(device),
            torch.random.fork_rng([device]),
            torch.no_grad(),
            assumed(multiprocessors=multiprocessors(device, 0)),
        ):
            yield
    finally:
        _this_thread.measuring = False


def measure(tunable: Tunable[Any]) -> list[tuple[float, Configuration]]:
    """Milliseconds of the candidates that do not spill, run and compute what the first one does.

    All launches share their inputs: the program that this is part of may need the memory.

    Raises:
        RuntimeError: there is no such candidate.
    """
    what = f"{tunable.kernel} {tunable.bucket}"
    log.info("timing %d configurations of %s", len(tunable.candidates), what)
    launch, reference, times = tunable.launcher(), Reference(), []
    for candidate in tunable.candidates:
        run = functools.partial(launch, candidate)
        try:
            if tunable.build(candidate)["spills"] > 0:
                continue
            difference = reference.difference(run())
            if difference:
                log.warning(
                    "%s: %s is not what the first computes: %s", what, candidate, difference
                )
            else:
                times.append((milliseconds(run), candidate))
        except Exception as error:
            # Whatever it is, the user's launch does not need this candidate.
            log.info("left out of %s: %s: %s", what, candidate, error)
    if not times:
        raise RuntimeError("no configuration could be measured")
    return times


def milliseconds(launch: Callable[[], object]) -> float:
    """Median time of a launch on the current GPU that finds none of its inputs in the cache."""
    times = []
    gpu = triton.runtime.driver.active
    other_memory = gpu.get_empty_cache_for_benchmark()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(WARM_UP + ROUNDS):
        gpu.clear_cache(other_memory)
        torch.cuda._sleep(SPIN_CYCLES)
        start.record()
        launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[WARM_UP:])


def _kept(tunable: Tunable[Any], gpu: str) -> Configuration | None:
    """What an earlier process measured; None where there is nothing that can be read."""
    with contextlib.suppress(Exception):
        path = _cache(tunable, gpu).get_file(FILE)
        found = json.loads(Path(path).read_text(encoding="utf-8"))["configuration"]
        return found if found in tunable.candidates else None
    return None


def _cache(tunable: Tunable[Any], gpu: str) -> Any:
    """Where in Triton's cache the choice is; another place if what it depends on has changed."""
    of_kernel = (tunable.kernel, tunable.bucket, tunable.digest, tunable.candidates)
    about = repr((triton.__version__, gpu, of_kernel))
    return triton.runtime.cache.get_cache_manager(hashlib.sha256(about.encode()).hexdigest())

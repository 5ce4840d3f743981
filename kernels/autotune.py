"""Measure a kernel's configurations when one is first needed (FASTGROW_AUTOTUNE=1).

The first launch under a key that is in no shipped table compiles all candidates of the kernel's
tunable, which takes a second or two each. It times those that do not spill and compute the same
result, on the tunable's own inputs, which are evicted from the GPU's cache before each launch. The
fastest one is used in this process, and in others through a file in Triton's cache
($TRITON_CACHE_DIR or ~/.triton/cache). The file's key contains everything the choice depends on:
the GPU, the kernel, its source and candidates, and the version of Triton. A change of any of these
causes a new measurement.

`triton.autotune(cache_results=True)` saves its choices there too. But it launches the candidates on
the caller's tensors, at every time that it is called, accepts candidates that spill or compute
something else, and measures the launcher instead of a kernel that is shorter.
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
# The GPU spins for about 0.3 ms, in which the host enqueues the launch. Then only the device's time
# is between the two events. `triton.testing.do_bench` does not do this, and a launcher may take
# longer on the host than its kernel on the device.
SPIN_CYCLES = 500_000

Configuration = dict[str, int]

_one_at_a_time = threading.Lock()
_this_thread = threading.local()
# Choices by GPU, kernel and key; None if there is nothing to choose from.
_chosen: dict[tuple[str, str, str], Configuration | None] = {}


def choose(gpu: str, kernel: str, key: str, device: torch.device) -> Configuration | None:
    """Return the fastest configuration of a kernel under a launcher's key.

    Returns:
        None if no tunable has the key, if no candidate runs, or if the configuration is not known
        yet and nothing may be measured now.
    """
    name = (gpu, kernel, key)
    # A measurement launches kernels too.
    if name not in _chosen and not getattr(_this_thread, "measuring", False):
        with _one_at_a_time:
            if name not in _chosen:
                _find(*name, device)
    return _chosen.get(name)


def may_measure() -> bool:
    """Whether kernels may be measured now.

    Not during CUDA graph capture, not while torch.compile traces, and not with deterministic
    algorithms, because the fastest candidate may differ from run to run.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.are_deterministic_algorithms_enabled()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _find(gpu: str, kernel: str, key: str, device: torch.device) -> None:
    """Read or measure the configuration and store it in `_chosen`, if that is possible now."""
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
            # The launch works without a measured configuration, so no error is fatal.
            warnings.warn(f"autotuning {kernel} {key}: {error}", stacklevel=5)
    _chosen[gpu, kernel, key] = found


@functools.cache
def _tunable(kernel: str, key: str, capability: int) -> Tunable[Any] | None:
    """Return the tunable of a kernel and key; cached, because launches may look it up often."""
    return next(
        (t for t in all_tunables(capability) if (t.kernel, t.bucket) == (kernel, key)), None
    )


forgetting += [_chosen.clear, _tunable.cache_clear]


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Make the device current, preserve its random state and prevent nested measurements."""
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
    """Return the milliseconds of the candidates that do not spill, run and agree with the first.

    All launches share their inputs, because the user's program may need the memory.

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
                    "%s: %s differs from the first candidate's result: %s",
                    what,
                    candidate,
                    difference,
                )
            else:
                times.append((milliseconds(run), candidate))
        except Exception as error:
            # The user's launch does not need this candidate, so no error is fatal.
            log.info("%s: %s is left out: %s", what, candidate, error)
    if not times:
        raise RuntimeError("no configuration could be measured")
    return times


def milliseconds(launch: Callable[[], object]) -> float:
    """Return the median time of a launch on the current GPU with a cold cache."""
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
    """Return the choice of an earlier process; None if there is none that can be read."""
    with contextlib.suppress(Exception):
        path = _cache(tunable, gpu).get_file(FILE)
        found = json.loads(Path(path).read_text(encoding="utf-8"))["configuration"]
        return found if found in tunable.candidates else None
    return None


def _cache(tunable: Tunable[Any], gpu: str) -> Any:
    """Return the folder of a choice in Triton's cache; its key contains all dependencies."""
    of_kernel = (tunable.kernel, tunable.bucket, tunable.digest, tunable.candidates)
    about = repr((triton.__version__, gpu, of_kernel))
    return triton.runtime.cache.get_cache_manager(hashlib.sha256(about.encode()).hexdigest())

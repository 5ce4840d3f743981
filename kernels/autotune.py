"""Measuring a kernel's configurations when one is first needed (FASTGROW_AUTOTUNE=1).

The first launch under a key that no table holds compiles all candidates of the kernel's tunable,
which takes a second or two each, and times those that do not spill and compute the same, on inputs
of the tunable's own, which other memory drives from the GPU's cache before each launch. The fastest
serves this process, and others by a file in the user's cache:

    $XDG_CACHE_HOME or ~/.cache, /fastgrow/tuning/<gpu>.json

of the same form as a shipped table. It holds for one version of Triton and is begun anew for
another; an entry that is no longer among the candidates, or of a kernel whose source has changed
since, is measured again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import statistics
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
import triton

from fastgrow.kernels.agreement import Reference
from fastgrow.kernels.multiprocessors import assumed, multiprocessors
from fastgrow.kernels.tunable import Tunable, all_tunables
from fastgrow.kernels.tuning_table import (
    SCHEMA,
    Table,
    file_name,
    read_table,
    table_of,
    write_atomically,
)

WARM_UP, ROUNDS = 3, 20
# About 0.3 ms of a GPU's time, in which the host gets ahead: what lies between two events is then
# the device's time alone.
SPIN_CYCLES = 500_000

C = TypeVar("C")
Configuration = dict[str, int]

log = logging.getLogger("fastgrow.kernels")

_one_at_a_time = threading.Lock()
_this_thread = threading.local()
# By GPU, kernel and key; None where there is nothing to choose from.
_chosen: dict[tuple[str, str, str], Configuration | None] = {}


def choose(gpu: str, kernel: str, key: str, device: torch.device, kind: type[C]) -> C | None:
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
    found = _chosen.get(name)
    return None if found is None else kind(**found)


def may_measure() -> bool:
    """Not while a CUDA graph is captured or torch.compile traces.

    Nor where runs are to be the same: which candidate is fastest may differ from run to run.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.are_deterministic_algorithms_enabled()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def user_file(gpu: str) -> Path:
    """Where the user's table of a GPU is kept.

    Raises:
        OSError: the user has no home.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError as error:
            raise FileNotFoundError(str(error)) from error
    return cache / "fastgrow" / "tuning" / file_name(gpu)


def forget() -> None:
    """Read the user's table again, and measure again what it does not hold."""
    _chosen.clear()
    _users.cache_clear()


def _find(gpu: str, kernel: str, key: str, device: torch.device) -> None:
    """Read or measure the configuration, unless that has to wait."""
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    tunable = next(
        (t for t in all_tunables(capability) if (t.kernel, t.bucket) == (kernel, key)), None
    )
    found = None
    if tunable is not None:
        users = _users(gpu)
        found = users.entries.get(kernel, {}).get(key)
        is_known = users.sources.get(kernel, {}).get(key) == tunable.digest
        if not is_known or found not in tunable.candidates:
            if not may_measure():
                return
            with _alone(device), assumed(multiprocessors(device, 0)):
                entry = measure(tunable)
            found = entry and entry["configuration"]
            if entry is None:
                warnings.warn(f"no configuration of {kernel} {key} could be measured", stacklevel=5)
            else:
                _keep(gpu, capability, kernel, key, entry)
    _chosen[gpu, kernel, key] = found


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """On the device, leaving its random numbers as they were, and without measuring within."""
    _this_thread.measuring = True
    try:
        with torch.cuda.device(device), torch.random.fork_rng([device]), torch.no_grad():
            yield
    finally:
        _this_thread.measuring = False


def measure(tunable: Tunable[Any]) -> dict[str, Any] | None:
    """The fastest candidate with its time and the default's, as an entry of a table.

    All launches share their inputs: the program that this is part of may need the memory.
    """
    candidates = tunable.candidates
    log.info("timing %d configurations of %s %s", len(candidates), tunable.kernel, tunable.bucket)
    times = _medians(tunable)
    known = [i for i, time in enumerate(times) if time is not None]
    if not known:
        return None
    best = min(known, key=lambda i: times[i] or 0.0)
    return {
        "configuration": candidates[best],
        "median_ms": times[best],
        "default_ms": times[0],
        "candidates": len(candidates),
        "left_out": len(candidates) - len(known),
        "source": tunable.digest,
    }


def _medians(tunable: Tunable[Any]) -> list[float | None]:
    """Milliseconds of each candidate; None for one that takes no part."""
    try:
        launch = tunable.launcher()
        scratch = more_than_the_cache()
    except Exception as error:
        # Whatever it is, the user's launch can do without.
        log.info("no inputs for %s %s: %s", tunable.kernel, tunable.bucket, error)
        return [None] * len(tunable.candidates)
    agreeing = _agreeing(tunable, launch)
    return [
        _median(tunable, launch, candidate, scratch) if candidate in agreeing else None
        for candidate in tunable.candidates
    ]


def _agreeing(
    tunable: Tunable[Any], launch: Callable[[Configuration], object]
) -> list[Configuration]:
    """The candidates that do not spill, run here and compute what the first of them does."""
    reference = Reference()
    agreeing: list[Configuration] = []
    for candidate in tunable.candidates:
        try:
            if tunable.build(candidate)["spills"] > 0:
                continue
            difference = reference.difference(launch(candidate))
        except Exception as error:
            # Whatever it is, the user's launch does not need this candidate.
            log.info("left out of %s: %s: %s", tunable.kernel, candidate, error)
            continue
        if difference:
            what = (tunable.kernel, tunable.bucket, candidate, agreeing[0], difference)
            log.warning("%s %s: %s is not what %s computes: %s", *what)
        else:
            agreeing.append(candidate)
    return agreeing


def _median(
    tunable: Tunable[Any],
    launch: Callable[[Configuration], object],
    candidate: Configuration,
    scratch: torch.Tensor,
) -> float | None:
    """Milliseconds of a launch that finds none of its inputs in the cache; None where it fails."""
    run = functools.partial(launch, candidate)
    times = []
    try:
        for _ in range(WARM_UP):
            run()
        for _ in range(ROUNDS):
            scratch.zero_()
            times.append(milliseconds(run))
    except Exception as error:
        log.info("left out of %s: %s: %s", tunable.kernel, candidate, error)
        return None
    return statistics.median(times)


def more_than_the_cache() -> torch.Tensor:
    """Memory of the current GPU that leaves nothing else in its cache when it is written."""
    device = torch.device("cuda", torch.cuda.current_device())
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(2 * size, dtype=torch.uint8, device=device)


def milliseconds(launch: Callable[[], object]) -> float:
    """Time of one launch on the current GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SPIN_CYCLES)
    start.record()
    launch()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@functools.cache
def _users(gpu: str) -> Table:
    """The user's table; empty where there is none of this version of Triton."""
    try:
        path = user_file(gpu)
        table = read_table(path)
    except FileNotFoundError:
        return Table()
    except ValueError as error:
        _set_aside(path, error)
        return Table()
    except OSError as error:
        warnings.warn(f"the user's tuning table cannot be read: {error}", stacklevel=2)
        return Table()
    return table if table.triton == triton.__version__ else Table()


def _set_aside(path: Path, error: ValueError) -> None:
    """Keep a damaged file under another name, so that a new one can be begun."""
    aside = path.with_suffix(".damaged")
    with contextlib.suppress(OSError):
        path.replace(aside)
    warnings.warn(f"tuning table {path} is set aside as {aside.name}: {error}", stacklevel=3)


def _keep(gpu: str, capability: int, kernel: str, key: str, entry: dict[str, Any]) -> None:
    """Store an entry, or warn: the launch that asked does not need the file."""
    head = {"schema": SCHEMA, "device": gpu, "capability": capability, "triton": triton.__version__}
    try:
        _store(user_file(gpu), head, kernel, key, entry)
    except OSError as error:
        warnings.warn(f"what was measured of {kernel} is not kept: {error}", stacklevel=6)


def _store(path: Path, head: dict[str, Any], kernel: str, key: str, entry: dict[str, Any]) -> None:
    """Add an entry to the user's table, beside what other processes add meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        _wait_for(lock)
        entries = _entries_to_keep(path, head["triton"])
        entries.setdefault(kernel, {})[key] = entry
        write_atomically(path, {**head, "entries": entries})


def _wait_for(lock: IO[str]) -> None:
    """Until no other process holds the file, which this one then does until it closes it."""
    try:
        import fcntl
    except ImportError:
        # Not on Windows. Two processes that store at once may lose an entry, which is then
        # measured again; the file itself is replaced as a whole.
        return
    fcntl.flock(lock, fcntl.LOCK_EX)


def _entries_to_keep(path: Path, version: str) -> dict[str, dict[str, Any]]:
    """What the file holds of this version, with the times."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        of_this_version = table_of(tree).triton == version
    except FileNotFoundError:
        return {}
    except ValueError as error:
        _set_aside(path, error)
        return {}
    entries: dict[str, dict[str, Any]] = tree["entries"]
    return entries if of_this_version else {}

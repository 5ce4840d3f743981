"""Interleaved timings of several calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

import torch


def fastest(
    calls: Mapping[Hashable, Callable[[], object]],
    device: torch.device,
    *,
    budget: float,
    rounds: int = 15,
) -> dict[Hashable, float]:
    """Return the shortest time of each call, in seconds.

    The calls are interleaved, so that a temporary disturbance of the machine affects all of them.
    The shortest time is the least disturbed one.

    Args:
        calls: calls by name; each is run once without timing as a warmup.
        device: device that the calls compute on.
        budget: seconds after which no further round is started; at least one round is run.
        rounds: maximum number of rounds.
    """
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    started = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - started > budget:
            break
        for name, call in calls.items():
            best[name] = min(best[name], _seconds(call, device))
    return best


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    result = call()
    _wait(device)
    elapsed = time.perf_counter() - started
    # Freeing the result's memory is not part of the call's time.
    del result
    return elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

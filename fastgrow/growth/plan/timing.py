"""Short timings of several calls, taken in turn."""

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
    """The shortest time of each call, in seconds.

    They run in turn, so that what disturbs the machine for a while disturbs all of them; the
    shortest time is the one that was disturbed least.

    Args:
        calls: by any names; each is run once before, untimed.
        device: that the calls compute on.
        budget: seconds after which no further round begins; at least two are run.
        rounds: at most.
    """
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 2 and time.perf_counter() - started > budget:
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
    # Giving the result's memory back is not the call's time.
    del result
    return elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Timing several contenders so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Output, Run, tensors_of
from benchmarks.clock import Clock

MIN_ROUNDS, MAX_ROUNDS = 5, 200
MAX_SETS = 32


@dataclass(frozen=True)
class Limits:
    """When to stop: after `seconds`, but not before `min_rounds` nor after `max_rounds`."""

    seconds: float
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS


# Given the number of an input set, does what is not timed and returns what is.
Step = Callable[[int], Callable[[], object]]


def interleaved(
    steps: Mapping[str, Step],
    clock: Clock,
    limits: Limits,
    n_sets: int,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Seconds of each contender, one sample a round.

    In every round each contender runs once, on the same input set, and the one that begins moves
    on by one; the next round takes the next set, so that no input is in the cache.
    """
    names = list(steps)
    samples: dict[str, list[float]] = {name: [] for name in names}
    deadline = now() + limits.seconds
    for round_ in range(limits.max_rounds):
        if round_ >= limits.min_rounds and now() >= deadline:
            break
        for name in order(names, round_):
            # Contenders of one round start apart in the sets too: the one before has just warmed
            # the cache with its own.
            offset = names.index(name)
            samples[name].append(clock.seconds(steps[name]((round_ + offset) % n_sets)))
    return samples


def order(names: Sequence[str], round_: int) -> list[str]:
    """The round's order: the list turned by the round's number."""
    turn = round_ % len(names)
    return [*names[turn:], *names[:turn]]


def input_sets(case: Case, clock: Clock, memory_limit: int) -> list[Inputs]:
    """As many sets of random inputs as it takes to be twice the cache, at least two.

    Args:
        memory_limit: bytes that all sets together may take.
    """
    first = case.inputs(seed=0)
    size = max(1, size_of(first))
    wanted = math.ceil(2 * clock.cache_bytes / size) + 1
    count = max(2, min(wanted, MAX_SETS, memory_limit // size))
    return [first, *(case.inputs(seed) for seed in range(1, count))]


def size_of(value: object) -> int:
    """Bytes of all tensors in a nested value."""
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(item) for item in value)
    nbytes = getattr(value, "nbytes", 0)
    return int(nbytes)


def step_of(case: Case, run: Run, sets: Sequence[Inputs], gradients: Sequence[Tensor]) -> Step:
    """How a contender does the case's pass; `gradients` are those of the outputs."""
    names = case.family.differentiate

    def backward(output: Output, inputs: Inputs) -> object:
        return torch.autograd.grad(tensors_of(output), [inputs[n] for n in names], gradients)

    def forward_only(i: int) -> Callable[[], object]:
        def timed() -> object:
            with torch.no_grad():
                return run(sets[i])

        return timed

    def backward_only(i: int) -> Callable[[], object]:
        output = run(sets[i])
        return lambda: backward(output, sets[i])

    def full(i: int) -> Callable[[], object]:
        return lambda: backward(run(sets[i]), sets[i])

    return {"forward": forward_only, "backward": backward_only, "full": full}[case.pass_]

"""Time several contenders in turns, so that other load on the machine affects them equally."""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Output, Run, tensors_of
from benchmarks.clock import Clock

MIN_ROUNDS, MAX_ROUNDS = 5, 200
# A GPU's cache can hold two hundred input sets of the smallest cases.
MAX_SETS = 256


@dataclass(frozen=True)
class Limits:
    """When to stop: after `seconds`, but after at least `min_rounds`, at most `max_rounds`."""

    seconds: float
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS


@dataclass(frozen=True)
class Samples:
    """A contender's seconds in each round.

    Args:
        seconds: one time for each round.
        covered: number of times without the host's launch time, None if the clock does not
            distinguish them (`benchmarks.clock`).
    """

    seconds: list[float]
    covered: int | None


_RUNS = itertools.count()

# Given the index of an input set, runs the untimed part and returns a function to be timed.
Step = Callable[[int], Callable[[], object]]


def interleaved(
    steps: Mapping[str, Step],
    clock: Clock,
    limits: Limits,
    n_sets: int,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Samples]:
    """Return the times of each contender, one sample per round.

    In every round, each contender runs once, in a random order; every call uses the next input set,
    so that its inputs are no longer in the cache.
    """
    names = list(steps)
    # The same name means a different call in another case.
    run = next(_RUNS)
    kinds = {name: f"{run} {name}" for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = itertools.count()
    deadline = now() + limits.seconds
    for round_ in range(limits.max_rounds):
        if round_ >= limits.min_rounds and now() >= deadline:
            break
        for name in order(names, round_):
            prepare = functools.partial(steps[name], next(calls) % n_sets)
            seconds[name].append(clock.seconds(prepare(), kinds[name], prepare))
    return {name: Samples(seconds[name], clock.covered(kinds[name])) for name in names}


def order(names: Sequence[str], round_: int) -> list[str]:
    """Return the round's order: shuffled, so that no contender always runs after the same one.

    The state of caches and allocators after a contender affects the next one, by about 5 % with a
    fixed order.
    """
    return random.Random(round_).sample(names, len(names))


def input_sets(case: Case, clock: Clock, memory_limit: int) -> list[Inputs]:
    """Make sets of random inputs, at least two, which together are twice as large as the cache.

    Args:
        case: the case.
        clock: clock with the size of the cache.
        memory_limit: maximum size of all sets together in bytes.
    """
    first = case.inputs(seed=0)
    size = max(1, size_of(first))
    wanted = math.ceil(2 * clock.cache_bytes / size) + 1
    count = max(2, min(wanted, MAX_SETS, memory_limit // size))
    return [first, *(case.inputs(seed) for seed in range(1, count))]


def size_of(value: object) -> int:
    """Return the bytes of all tensors in a nested value."""
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(item) for item in value)
    nbytes = getattr(value, "nbytes", 0)
    return int(nbytes)


def step_of(case: Case, run: Run, sets: Sequence[Inputs], gradients: Sequence[Tensor]) -> Step:
    """Return the step that runs the case's pass; `gradients` are those of the outputs."""

    def backward(output: Output, inputs: Inputs) -> object:
        wanted = list(case.family.differentiated(inputs).values())
        return torch.autograd.grad(tensors_of(output), wanted, gradients)

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

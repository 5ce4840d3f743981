"""Timing several contenders so that what disturbs the machine disturbs them alike."""

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
# A GPU's cache holds two hundred sets of the smallest cases.
MAX_SETS = 256


@dataclass(frozen=True)
class Limits:
    """When to stop: after `seconds`, but not before `min_rounds` nor after `max_rounds`."""

    seconds: float
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS


@dataclass(frozen=True)
class Samples:
    """A contender's seconds, one a round, and how many are without the host's launches.

    `covered` is None where that is not told apart (`benchmarks.clock`).
    """

    seconds: list[float]
    covered: int | None


_RUNS = itertools.count()

# Given the number of an input set, does what is not timed and returns what is.
Step = Callable[[int], Callable[[], object]]


def interleaved(
    steps: Mapping[str, Step],
    clock: Clock,
    limits: Limits,
    n_sets: int,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Samples]:
    """The times of each contender, one sample a round.

    In every round each contender runs once, in an order of the round's own; every call takes the
    next input set, so that its inputs have left the cache.
    """
    names = list(steps)
    # A contender's name stands for another call in another case.
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
    """The round's order: shuffled, so that nobody always runs after the same one.

    What ran before leaves traces in caches and allocators; they cost a fixed order some 5 %.
    """
    return random.Random(round_).sample(names, len(names))


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

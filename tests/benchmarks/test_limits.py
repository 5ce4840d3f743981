"""Limits of overhead, counted in operations; and how `benchmarks.limits` evaluates times."""

from __future__ import annotations

import itertools

import pytest
from counted_operations import operations
from fake_time import Ticking

from benchmarks.limits import (
    Limit,
    _shortest,
    bare_loop,
    one_block,
    patched_step,
    plain_models,
    substrate_building,
    trainer_loop,
    trainer_overhead,
)


def test_the_trainer_adds_few_operations_to_its_step() -> None:
    steps, model = 50, one_block(8)
    bare = operations(lambda: bare_loop(model, steps))
    trained = operations(lambda: trainer_loop(model, steps))
    # For the sum of the losses and reading it; in addition to the optimizer's operations, less than
    # one for each of the 14 parameters.
    assert 0 < trained.total() - bare.total() <= 15 * steps
    # Reading a number waits for the device.
    waits = "aten._local_scalar_dense.default"
    assert trained[waits] - bare[waits] <= 4 * steps


def test_the_shortest_counts_and_the_first_round_does_not() -> None:
    took = [0, 1, 0, 1, 0, 5, 0, 7, 0, 3, 0, 9]
    times = itertools.accumulate(took)

    def nothing() -> None:
        pass

    assert _shortest(lambda: next(times), 2, nothing, nothing) == [3, 7]


@pytest.mark.slow
def test_the_limits_are_shares_of_the_plain_side() -> None:
    # Every call of the clock is a second later: both sides take one.
    assert trainer_overhead(Ticking(1.0), steps=2, rounds=1).measured == 0
    assert substrate_building(Ticking(1.0)).measured == 1
    pytest.importorskip("transformers")
    for name, model in plain_models().items():
        assert patched_step(name, model, Ticking(1.0), rounds=1) == Limit(
            f"patched {name}, training", 1.0, 1.05
        )


def test_what_is_above_its_limit_is_told() -> None:
    assert Limit("", 1.05, 1.05).holds
    assert not Limit("", 1.051, 1.05).holds

"""The suite's cases under pytest-benchmark: `pytest benchmarks --benchmark-only`.

Use it to compare runs and for pytest-benchmark's statistics. `python -m benchmarks` also checks
correctness, measures memory and interleaves the contenders, so its ratios are more reliable.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from benchmarks.case import Case
from benchmarks.clock import clock_of
from benchmarks.command import choose_cases, kinds
from benchmarks.contenders import Contender, contenders
from benchmarks.correctness import random_gradients
from benchmarks.interleave import input_sets, step_of

INPUT_BYTES = 1 << 30


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = choose_cases(
        device,
        op=option("--op"),
        dtype=option("--dtype"),
        grid=option("--grid"),
        first_only=not option("--full-grid"),
    )
    against = kinds(option("--against"), quick=True)
    pairs = [(case, contender) for case in cases for contender in contenders(case, against)]
    ids = [f"{case.name} {contender.name}".replace(" ", "-") for case, contender in pairs]
    metafunc.parametrize(("case", "contender"), pairs, ids=ids)


def test_speed(case: Case, contender: Contender, benchmark: Any) -> None:
    benchmark.group = case.name
    torch._dynamo.reset()
    clock = clock_of(torch.device(case.device))
    sets = input_sets(case, clock, INPUT_BYTES)
    gradients: tuple[torch.Tensor, ...] = ()
    if case.pass_ != "forward":
        gradients = random_gradients(lambda inputs: case.family.call(inputs, None), sets[0])
    step = step_of(case, contender.run, sets, gradients)
    try:
        step(0)()
    except Exception as error:
        pytest.skip(f"{contender.name} cannot run: {error}")
    rounds = itertools.count()

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (step(next(rounds) % len(sets)),), {}

    def run(timed: Any) -> None:
        timed()
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, setup=setup, rounds=10, warmup_rounds=1)

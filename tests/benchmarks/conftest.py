"""An operation for measurements, and a fake machine."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# The suite is not an installed package, and `pytest` does not search the repository's root folder.
sys.path.insert(0, str(ROOT))

from fake_time import FakeClock, Ticking  # noqa: E402

from benchmarks import command, compiling, experts  # noqa: E402
from benchmarks.case import Family, Inputs, Shape  # noqa: E402
from benchmarks.machine import Machine  # noqa: E402
from benchmarks.measure import Budget  # noqa: E402
from benchmarks.results import Ceilings  # noqa: E402
from fastgrow.ops.core import dispatch  # noqa: E402


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> Iterator[dispatch.Operation]:
    """`triple`: 3x, with an implementation by a library that tests may break."""
    monkeypatch.setattr(dispatch, "_environment", None)
    sums = dispatch.Implementation("sums", lambda x: x + x + x)
    eager = dispatch.Implementation("eager", lambda x: 3 * x)
    triple = dispatch.Operation("triple", [sums, eager])
    yield triple
    del dispatch.OPERATIONS["triple"]


@pytest.fixture
def family(operation: dispatch.Operation) -> Family:
    """The family of `triple`, with one library."""

    def inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return {"x": torch.randn(shape["N"], generator=generator, dtype=dtype)}

    return Family(
        op="triple",
        grids={"tiny": [{"N": 64}], "cpu": [{"N": 64}, {"N": 128}], "gpu": [{"N": 64}]},
        inputs=inputs,
        call=lambda inputs, impl: operation(inputs["x"], impl),
        differentiate=("x",),
        libraries=lambda case: {"library": lambda inputs: 3.0 * inputs["x"]},
    )


@pytest.fixture
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command uses up its budget, however slow this machine is."""
    for module in (command, experts):
        monkeypatch.setattr(module, "Budget", functools.partial(Budget, now=Ticking()))


@pytest.fixture
def machine() -> Machine:
    """A CPU that is presented as a GPU."""
    environment = {
        "kind": "cuda",
        "device": "Fake GPU 9000",
        "capability": "9.0",
        "driver": "1.2",
        "torch": "2.99",
        "triton": "3.99",
        "commit": "abc",
    }
    return Machine(
        torch.device("cpu"), FakeClock(), environment, lambda: Ceilings(1000.0, 500.0, "bf16")
    )


class InThisProcess:
    """Replaces a compiling process, whose start takes seconds."""

    def __init__(self, multiprocessors: int | None) -> None:
        pass

    def build(self, job: compiling.Job) -> compiling.Outcome:
        return compiling.build_one(job)

    def kill(self) -> None:
        pass


@pytest.fixture
def compiled_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile tunables in this process, one after the other."""
    monkeypatch.setattr(compiling, "Worker", InThisProcess)
    monkeypatch.setattr(compiling, "cores", lambda: 1)

"""Recording launches without running them, and the limits of a program on each GPU."""

from __future__ import annotations

import threading
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime.jit import JITFunction  # noqa: E402

from fastgrow.kernels import compile_offline  # noqa: E402


@triton.jit
def nothing(n) -> None:  # type: ignore[no-untyped-def]
    pass


def test_launches_of_other_threads_are_made_and_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def run(kernel: JITFunction[Any], n: int, **options: object) -> str:
        made.append(n)
        return "launched"

    monkeypatch.setattr(JITFunction, "run", run)
    answers: list[object] = []

    def both() -> None:
        other = threading.Thread(target=lambda: answers.append(nothing[(1,)](2)))
        other.start()
        other.join()
        nothing[(1,)](1)

    launches = compile_offline.recorded(both)
    assert [launch.arguments for launch in launches] == [{"n": 1}]
    assert (made, answers) == ([2], ["launched"])
    assert JITFunction.run is run, "afterwards launches are made again"


@pytest.mark.parametrize(
    ("capability", "kib"),
    [(80, 163), (86, 99), (87, 163), (89, 99), (90, 227), (100, 227), (103, 227), (120, 99)],
)
def test_shared_memory_is_that_of_cuda_s_table(capability: int, kib: int) -> None:
    """The limits per thread block in the CUDA guide's table of compute capabilities."""
    assert compile_offline.shared_limit(capability) == kib * 1024

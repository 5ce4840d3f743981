"""Number of our files that a call enters, and that a newcomer opens to follow it to its kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor

import fastgrow
from fastgrow import _native, ops

PACKAGE = Path(fastgrow.__file__).parent


def entered(call: Callable[[], object]) -> set[str]:
    """Files of fastgrow whose functions run in the second run of a call."""
    call()
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    ours = (PACKAGE, PACKAGE.parent / "kernels")
    return {file for file in seen if any(root in Path(file).parents for root in ours)}


TABLE = ops.rope_table(64, 32)


def half(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().requires_grad_()


def attend() -> Tensor:
    q, k, v = (half(1, 2, 64, 32) for _ in range(3))
    return ops.attention(q, k, v, rope=TABLE, impl="triton")


def attend_as_chosen() -> Tensor:
    q, k, v = (half(1, 2, 64, 32) for _ in range(3))
    return ops.attention(q, k, v, rope=TABLE, window=9)


def lose(impl: str | None) -> Tensor:
    # So many logits that they are not computed at once.
    h, weight, targets = half(32, 16), half(2**17, 16), torch.arange(32)
    return ops.linear_cross_entropy(h, weight, targets, impl=impl)


@pytest.mark.parametrize(
    ("call", "most"),
    [
        pytest.param(attend, 8, id="attention"),
        pytest.param(attend_as_chosen, 8, id="attention, chosen"),
        pytest.param(lambda: lose("triton"), 8, id="head's loss"),
        pytest.param(lambda: lose(None).backward(), 8, id="head's loss, chosen, both passes"),
    ],
)
def test_through_triton(call: Callable[[], object], most: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from benchmarks.stubbed import launches_stubbed

    with launches_stubbed():
        files = entered(call)
    assert 3 < len(files) <= most, sorted(files)


@pytest.mark.skipif(not _native.CPU.loaded, reason="the extension is not built")
def test_through_the_extension() -> None:
    logits = [torch.randn(4, 100) for _ in range(2)]
    files = entered(lambda: ops.logit_mean(logits, impl="native"))
    assert 1 < len(files) <= 4, sorted(files)

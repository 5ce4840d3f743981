"""The lookup kernel compiled for GPUs."""

from __future__ import annotations

import pytest
import torch
from cross_compile import TARGETS, compile_for, recorded

triton = pytest.importorskip("triton", reason="triton is not installed")
from fastgrow.kernels import embedding as kernels  # noqa: E402
from fastgrow.kernels.calls import EmbeddingCall  # noqa: E402

# Triton 3.6 loads each value once and rearranges them for the store through shared memory; 3.7
# loads them in the layout of the store.
PASSED_ON = 8192 if triton.__version__.startswith("3.6.") else 0


def check(table: torch.Tensor | None, bits: int | None, capability: int) -> None:
    ids = torch.empty(16384, dtype=torch.int64, device="meta")
    call = EmbeddingCall(ids, table, 65536, 64, bits, 0.0, 1.0, torch.bfloat16)
    (launch,) = recorded(lambda: kernels.lookup(call))
    compiled = compile_for(launch, capability)
    assert compiled.spills == 0
    assert compiled.shared <= PASSED_ON
    # Whole vectors are written, eight numbers each.
    assert compiled.count("STG.E.128") > 0


def test_packed_bits() -> None:
    check(torch.empty(65536, 2, dtype=torch.uint8, device="meta"), 16, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
def test_every_kind_of_table(capability: int) -> None:
    check(None, 16, capability)
    check(torch.empty(65536, dtype=torch.int32, device="meta"), 16, capability)
    check(torch.empty(65536, 16, dtype=torch.bfloat16, device="meta"), None, capability)

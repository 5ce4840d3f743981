"""The rotation compiled for GPUs."""

from __future__ import annotations

import pytest
import torch
from cross_compile import TARGETS, compile_for, recorded

launchers = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_every_head_dimension(dim: int, capability: int) -> None:
    for length in (1024, 1):
        x = torch.empty(2, length, 8, dim, dtype=torch.bfloat16, device="meta").transpose(1, 2)
        out = torch.empty_like(x)
        cos = torch.empty(4096, dim // 2, device="meta")
        arguments = launchers.rotation_arguments(cos, cos, None)
        (launch,) = recorded(lambda: launchers.rotate(x, arguments, out))  # noqa: B023
        compiled = compile_for(launch, capability)
        assert compiled.spills == 0
        # Whole vectors are written if there are enough rows for every thread to have one.
        assert length == 1 or compiled.count("STG.E.128") > 0

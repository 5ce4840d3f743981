"""Run the shared harness for every operation that has a kernel."""

from __future__ import annotations

import pytest
import torch
from harness import DEVICE, check_operation

from fastgrow.ops import OPERATIONS

WITH_KERNELS = [name for name, op in OPERATIONS.items() if "triton" in op.implementations]


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_kernels_agree_with_the_formula(name: str) -> None:
    served = check_operation(OPERATIONS[name], DEVICE, torch.float32)
    assert {"triton", "eager"} <= {*served}

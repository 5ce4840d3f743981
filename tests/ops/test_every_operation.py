"""Compare all implementations that can run an operation's example on a CPU."""

from __future__ import annotations

import pytest
import torch
from harness import check_operation

from fastgrow.ops import OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
def test_implementations_agree_with_the_formula(name: str) -> None:
    served = check_operation(OPERATIONS[name], "cpu", torch.float32)
    assert "eager" in served

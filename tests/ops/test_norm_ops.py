"""LayerNorm and RMSNorm: the formula in float64, torch's kernels beside it, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgrow import ops
from fastgrow.errors import ArgumentError

IMPLEMENTATIONS = ["eager", "vendor"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_layer_norm(impl: str) -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64) * 3 + 2
    weight, bias = torch.randn(2, 16, dtype=torch.float64)
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-3).sqrt()
    y = ops.layer_norm(x, weight, bias, eps=1e-3, impl=impl)
    torch.testing.assert_close(y, scaled * weight + bias)
    torch.testing.assert_close(ops.layer_norm(x, weight, eps=1e-3, impl=impl), scaled * weight)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rms_norm(impl: str) -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64) * 3 + 2
    weight = torch.randn(16, dtype=torch.float64)
    y = ops.rms_norm(x, weight, eps=1e-3, impl=impl)
    torch.testing.assert_close(y, x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("norm", [ops.layer_norm, ops.rms_norm])
def test_residual_is_added_first_and_given_back(norm: Any, impl: str) -> None:
    x, residual = torch.randn(2, 3, 16)
    weight = torch.randn(16)
    y, total = norm(x, weight, residual=residual, impl=impl)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, norm(x + residual, weight, impl=impl))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("norm", [ops.layer_norm, ops.rms_norm])
def test_half_precision_has_statistics_in_float32(norm: Any, impl: str) -> None:
    x = (torch.randn(4, 512) + 30).bfloat16()
    weight = torch.ones(512).bfloat16()
    y = norm(x, weight, impl=impl)
    assert y.dtype == torch.bfloat16
    exact = norm(x.double(), weight.double(), impl="eager")
    # Half a unit in the last place of bfloat16's 8 bits.
    torch.testing.assert_close(y.double(), exact, atol=1e-6, rtol=2**-8)


@pytest.mark.parametrize("norm", [ops.layer_norm, ops.rms_norm])
def test_gradient(norm: Any) -> None:
    x, weight = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    residual = torch.randn(3, 6, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, residual)]
    assert torch.autograd.gradcheck(lambda x, w, r: norm(x, w, residual=r, impl="eager"), inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(8)}, r"weight must be of shape \[16\], got \[8\]"),
        ({"bias": torch.ones(8)}, r"bias must be of shape \[16\]"),
        ({"residual": torch.ones(1, 16)}, r"residual must be of shape \[3, 16\]"),
        ({"x": torch.ones(3, 16, dtype=torch.int64)}, "x must be a floating-point"),
        ({"x": torch.tensor(1.0)}, r"x must be of shape \[..., d\]"),
        ({"weight": torch.ones(16, device="meta")}, "weight must be on cpu"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.layer_norm(**({"x": torch.ones(3, 16), "weight": torch.ones(16)} | change))

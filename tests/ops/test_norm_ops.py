"""LayerNorm and RMSNorm: the formula in float64, torch's kernels, bad input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.kernels.calls import NormCall
from fastgrow.ops.core.dispatch import OPERATIONS

IMPLEMENTATIONS = ["eager", "aten"]


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
def test_residual_is_added_first_and_the_sum_is_returned(norm: Any, impl: str) -> None:
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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weight_and_bias_are_optional(impl: str) -> None:
    x, bias = torch.randn(3, 16), torch.randn(16)
    plain = ops.layer_norm(x, impl=impl)
    torch.testing.assert_close(plain, ops.layer_norm(x, torch.ones(16), impl=impl))
    torch.testing.assert_close(ops.layer_norm(x, None, bias, impl=impl), plain + bias)
    expected = ops.rms_norm(x, torch.ones(16), impl=impl)
    torch.testing.assert_close(ops.rms_norm(x, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("norm", [ops.layer_norm, ops.rms_norm])
def test_the_sum_is_in_the_wider_dtype(norm: Any, impl: str) -> None:
    x, residual = torch.randn(3, 16).bfloat16(), torch.randn(3, 16)
    y, total = norm(x, torch.randn(16), residual=residual, impl=impl)
    assert y.dtype == total.dtype == torch.float32


@pytest.fixture
def autocast_on_a_gpu() -> Iterator[None]:
    """Like `torch.autocast("cuda")`, which does nothing without a GPU."""
    with FakeTensorMode():
        torch.set_autocast_enabled("cuda", True)
        yield
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("autocast_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("impl", ["eager", "aten"])
@pytest.mark.parametrize("norm", [ops.layer_norm, ops.rms_norm])
def test_autocast_on_a_gpu_gives_float32(norm: Any, impl: str, dtype: torch.dtype) -> None:
    """With every version of torch, and also with a residual."""
    x = torch.empty(3, 16, device="cuda", dtype=dtype)
    weight = torch.empty(16, device="cuda")
    assert norm(x, weight, impl=impl).dtype == torch.float32
    y, total = norm(x, weight, residual=x, impl=impl)
    assert (y.dtype, total.dtype) == (torch.float32, dtype)


def test_rms_norm_is_bitwise_equal_to_torch_with_and_without_a_gradient() -> None:
    x, weight = torch.randn(7, 48), torch.randn(48, requires_grad=True)
    expected = torch.nn.functional.rms_norm(x, (48,), weight, 1e-6)
    assert torch.equal(ops.rms_norm(x, weight), expected)
    with torch.no_grad():
        assert torch.equal(ops.rms_norm(x, weight), expected)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_gradient_of_rms_norm_on_a_cpu(needed: tuple[bool, bool]) -> None:
    """First and second derivatives of the automatic choice, by finite differences."""
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=needed[0])
    weight = torch.randn(6, dtype=torch.float64, requires_grad=needed[1])

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, weight, eps=1e-3)

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


def test_gradient_of_rms_norm_on_a_cpu_is_not_a_chain_of_operations() -> None:
    x, weight = torch.randn(3, 6, requires_grad=True), torch.randn(6)
    assert "RMSNorm" in type(ops.rms_norm(x, weight).grad_fn).__name__
    half = ops.rms_norm(x.bfloat16(), weight.bfloat16())
    assert "RMSNorm" not in type(half.grad_fn).__name__


def test_rms_norm_supports_torch_s_transforms() -> None:
    x, weight = torch.randn(3, 6), torch.randn(6)

    def loss(weight: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(row, weight).sum()

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    torch.testing.assert_close(rows, ops.rms_norm(x, torch.ones(6)))


def test_a_gpu_uses_the_kernels_if_they_move_fewer_bytes() -> None:
    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

    x, trained = OnGPU(torch.zeros(2, 8)), OnGPU(torch.zeros(8)).requires_grad_()

    def call(residual: torch.Tensor | None, weight: torch.Tensor | None) -> NormCall:
        return NormCall(x, residual, weight, None, 1e-5, True, x.dtype)

    pays = OPERATIONS["layer_norm"].implementations["triton"].pays
    for residual, weight, taken in ((x, x[0], True), (None, trained, True), (None, None, False)):
        ok, reason = pays(call(residual, weight))
        assert ok == taken
        assert reason
    with torch.no_grad():
        assert not pays(call(None, trained))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(8)}, r"weight must be of shape \[16\], got \[8\]"),
        ({"bias": torch.ones(8)}, r"bias must be of shape \[16\]"),
        ({"residual": torch.ones(1, 16)}, r"residual must be of shape \[3, 16\]"),
        ({"x": torch.ones(3, 16, dtype=torch.int64)}, "x must be a floating-point"),
        ({"x": torch.tensor(1.0)}, r"x must be of shape \[..., d\]"),
        ({"weight": torch.ones(16, device="meta")}, "weight must be on cpu"),
        ({"weight": torch.ones(16, dtype=torch.int64)}, "weight must be a floating-point"),
        ({"residual": torch.ones(3, 16, dtype=torch.bool)}, "residual must be a floating-point"),
        ({"residual": torch.ones(3, 16, device="meta")}, "residual must be on cpu"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.layer_norm(**({"x": torch.ones(3, 16), "weight": torch.ones(16)} | change))

"""A frozen linear layer with a low-rank correction: formula, gradients, saved tensors, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgrow import ops
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.kernels.calls import LoraCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import OPERATIONS

SCALE = 0.7


def tensors(
    dtype: torch.dtype = torch.float64, low_rank: torch.dtype | None = None
) -> list[Tensor]:
    """x, weight, a, b and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 6), (7, 6), (3, 6), (7, 3), (7,))
    x, weight, a, b, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    low_rank = low_rank or dtype
    return [x.to(dtype), weight.to(dtype), a.to(low_rank), b.to(low_rank), bias.to(dtype)]


def with_gradients(given: list[Tensor]) -> list[Tensor]:
    x, weight, a, b, bias = given
    return [x.requires_grad_(), weight, a.requires_grad_(), b.requires_grad_(), bias]


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_formula(impl: str) -> None:
    x, weight, a, b, bias = tensors()
    y = ops.lora_linear(x, weight, a, b, bias, scale=SCALE, impl=impl)
    torch.testing.assert_close(y, x @ (weight + SCALE * b @ a).T + bias)
    without = ops.lora_linear(x, weight, a, b, impl=impl)
    torch.testing.assert_close(without, x @ (weight + b @ a).T)


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_gradient(impl: str) -> None:
    x, weight, a, b, bias = with_gradients(tensors())

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ops.lora_linear(x, weight, a, b, bias, scale=SCALE, impl=impl)

    assert torch.autograd.gradcheck(run, (x, a, b))


def test_on_a_cpu_the_library_s_products_are_chosen() -> None:
    x, weight, a, b, bias = with_gradients(tensors(torch.float32))
    call = LoraCall(x, weight, a, b, bias, 1.0)
    assert OPERATIONS["lora_linear"].explain(call).active == "blas"


@pytest.mark.parametrize("trains", ["weight", "bias"])
def test_a_trainable_weight_gets_its_gradient_from_eager(trains: str) -> None:
    x, weight, a, b, bias = with_gradients(tensors())
    trained = {"weight": weight, "bias": bias}[trains].requires_grad_()
    ops.lora_linear(x, weight, a, b, bias).sum().backward()
    assert trained.grad is not None
    assert a.grad is not None
    with pytest.raises(ConfigError, match="weight or bias requires a gradient"):
        ops.lora_linear(x, weight, a, b, bias, impl="blas")
    with torch.no_grad():
        ops.lora_linear(x, weight, a, b, bias, impl="blas")


@pytest.mark.parametrize(
    ("needed", "kept"),
    [
        ((True, True, True), ["a", "b", "u", "weight", "x"]),
        ((True, False, False), ["a", "b", "weight"]),
        ((False, True, False), ["b", "x"]),
        ((False, False, True), ["u"]),
    ],
)
def test_saves_only_what_the_gradients_need(needed: tuple[bool, ...], kept: list[str]) -> None:
    x, weight, a, b, bias = tensors()
    for tensor, wanted in zip((x, a, b), needed, strict=True):
        tensor.requires_grad_(wanted)
    shapes = {"x": (6, 10), "weight": (6, 7), "a": (3, 6), "b": (3, 7), "u": (3, 10)}
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(sorted(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = ops.lora_linear(x, weight, a, b, bias, impl="blas")
    assert sorted(saved) == sorted(shapes[name] for name in kept)
    y.sum().backward()
    assert [t.grad is not None for t in (x, a, b)] == list(needed)


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_float32_corrections_of_half_precision_layers(impl: str) -> None:
    x, weight, a, b, bias = with_gradients(tensors(torch.bfloat16, torch.float32))
    y = ops.lora_linear(x, weight, a, b, bias, scale=SCALE, impl=impl)
    assert y.dtype == torch.bfloat16
    dx, da, db = torch.autograd.grad(y.sum(), (x, a, b))
    assert (dx.dtype, da.dtype, db.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    wide = with_gradients([t.detach().double() for t in (x, weight, a, b, bias)])
    truth = ops.lora_linear(*wide, scale=SCALE, impl="eager")
    expected = torch.autograd.grad(truth.sum(), (wide[0], wide[2], wide[3]))
    for got, want in zip((y, dx, da, db), (truth, *expected), strict=True):
        assert (got.double() - want).abs().max() <= 0.02 * want.abs().max()


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_autocast(impl: str) -> None:
    x, weight, a, b, bias = with_gradients(tensors(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.lora_linear(x, weight, a, b, bias, impl=impl)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    half = [t.detach().to(torch.bfloat16) for t in (x, weight, a, b, bias)]
    assert torch.equal(y, ops.lora_linear(*half, impl=impl))


def test_strided_expanded_and_empty_inputs() -> None:
    x, weight, a, b, bias = tensors()
    expected = ops.lora_linear(x, weight, a, b, bias, impl="eager")
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    column_major = weight.T.contiguous().T
    y = ops.lora_linear(strided, column_major, a, b, bias, impl="blas")
    torch.testing.assert_close(y, expected)
    alike = x[:1].expand(4, -1, -1)
    assert ops.lora_linear(alike, weight, a, b, bias, impl="blas").shape == (4, 5, 7)
    none = x[:0].detach().requires_grad_()
    a.requires_grad_()
    ops.lora_linear(none, weight, a, b, bias, impl="blas").sum().backward()
    assert a.grad is not None
    assert not a.grad.any()
    assert ops.lora_linear(x[0, 0], weight, a, b, bias, impl="blas").shape == (7,)


def test_gradients_of_gradients() -> None:
    x, weight, a, b, bias = with_gradients(tensors())

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ops.lora_linear(x, weight, a, b, bias, impl="blas")

    assert torch.autograd.gradgradcheck(run, (x, a, b))


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    _, weight, a, b, bias = with_gradients(tensors(torch.float32))
    compiled = torch.compile(
        lambda x: ops.lora_linear(x, weight, a, b, bias, impl="blas"),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for n in (9, 11):
        x = torch.randn(n, 6, requires_grad=True)
        y = compiled(x)
        assert torch.equal(y, ops.lora_linear(x, weight, a, b, bias, impl="blas"))
        y.sum().backward()
        assert x.grad is not None
    assert graphs == 1


@pytest.mark.parametrize(
    ("n", "width", "out", "rank", "reason"),
    [
        (16384, 1024, 1024, 16, ""),
        (16384, 4096, 1024, 16, "too small a share"),
        (16384, 1024, 4096, 16, "too small a share"),
        (16384, 1024, 1024, 128, "rank 128"),
        (64, 1024, 1024, 16, "too few tiles"),
    ],
)
def test_when_the_kernel_pays(
    n: int, width: int, out: int, rank: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "triton_pays_on", lambda tensor: (True, ""))
    x, weight, a, b = (
        torch.zeros(1, 1, dtype=torch.bfloat16).expand(shape)
        for shape in ((n, width), (out, width), (rank, width), (out, rank))
    )
    pays = OPERATIONS["lora_linear"].implementations["triton"].pays
    ok, why = pays(LoraCall(x.detach().requires_grad_(), weight, a, b, None, 1.0))
    assert ok == (not reason)
    assert reason in why
    single = x.float()
    assert not pays(LoraCall(single, weight.float(), a, b, None, 1.0))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(())}, r"x must be of shape \[\.\.\., in\]"),
        ({"x": torch.zeros(2, 6, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"weight": torch.zeros(7, 5)}, r"weight must be of shape \[out, 6\], got \[7, 5\]"),
        ({"weight": torch.zeros(7, 6).half()}, r"weight must be of dtype torch\.float32"),
        ({"weight": torch.zeros(7, 6, device="meta")}, "weight must be on cpu"),
        ({"bias": torch.zeros(6)}, r"bias must be of shape \[7\]"),
        ({"a": torch.zeros(3, 7)}, r"a must be of shape \[at least 1, 6\], got \[3, 7\]"),
        ({"a": torch.zeros(0, 6)}, "a must be of shape"),
        ({"a": torch.zeros(3, 6).half()}, r"a must be of dtype torch\.float32 or"),
        ({"a": torch.zeros(3, 6, device="meta")}, "a must be on cpu"),
        ({"b": torch.zeros(3, 7)}, r"b must be of shape \[7, 3\], got \[3, 7\]"),
        ({"b": torch.zeros(7, 3).double()}, r"b must be of dtype torch\.float32 like a"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    names = ("x", "weight", "a", "b", "bias")
    arguments = dict(zip(names, tensors(torch.float32), strict=True))
    with pytest.raises(ArgumentError, match=f"lora_linear: {message}"):
        ops.lora_linear(**(arguments | change))

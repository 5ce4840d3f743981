"""The feed-forward operation: each activation's formula, gradients, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.kernels.calls import MlpCall
from fastgrow.ops.core.dispatch import OPERATIONS
from fastgrow.ops.feed_forward import ACTIVATIONS

FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


def parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 3, 6), "up": (10, 6), "down": (6, 10), "up_bias": (10,), "down_bias": (6,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("impl", ["eager", "blas"])
@pytest.mark.parametrize("activation", FORMULAS)
def test_formula(activation: str, impl: str) -> None:
    p = parameters()
    hidden = FORMULAS[activation](p["x"] @ p["up"].T + p["up_bias"])
    expected = hidden @ p["down"].T + p["down_bias"]
    y = ops.mlp(**p, activation=activation, residual=p["x"], impl=impl)
    torch.testing.assert_close(y, expected + p["x"])


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_swiglu(impl: str) -> None:
    p = parameters()
    gate = p["up"].flip(0)
    gated = p["x"] @ gate.T
    hidden = gated * torch.sigmoid(gated) * (p["x"] @ p["up"].T + p["up_bias"])
    y = ops.mlp(**p, gate=gate, activation="swiglu", impl=impl)
    torch.testing.assert_close(y, hidden @ p["down"].T + p["down_bias"])


@pytest.mark.parametrize("impl", ["eager", "blas"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient(activation: str, impl: str) -> None:
    tensors = layer(activation, *NAMES)

    def run(*leaves: torch.Tensor) -> torch.Tensor:
        return ops.mlp(**dict(zip(tensors, leaves, strict=True)), activation=activation, impl=impl)  # type: ignore[misc]

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))


NAMES = ("x", "up", "down", "gate", "up_bias", "down_bias", "residual")


def layer(activation: str, *wanted: str) -> dict[str, torch.Tensor]:
    """All arguments; the named ones require gradients."""
    p = parameters()
    p["residual"] = p["x"].flip(0)
    if activation == "swiglu":
        p["gate"] = p["up"].flip(0)
    return {name: t.clone().requires_grad_(name in wanted) for name, t in p.items()}


@pytest.mark.parametrize("impl", ["blas", None])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("", ""),
        ("residual", ""),
        ("down_bias", ""),
        ("x", "pre up down"),
        ("up_bias", "pre down"),
        ("down", "pre"),
    ],
)
def test_saves_only_what_the_needed_gradients_depend_on(
    activation: str, wanted: str, kept: str, impl: str | None
) -> None:
    """A frozen layer saves only the activation's input, or nothing, and has no gradient."""
    if impl is None and wanted not in ("", "residual", "x"):
        pytest.skip("plain PyTorch's own affair: a weight is trained")
    p = layer(activation, *wanted.split())
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
    ):
        y = ops.mlp(**p, activation=activation, impl=impl)  # type: ignore[arg-type]
    gated = activation == "swiglu"
    hidden, weight = 6 * 10, 6 * 10
    numbers = {
        "pre": [hidden, hidden] if gated and wanted != "down" else [hidden],
        "up": [weight, weight] if gated else [weight],
        "down": [weight],
    }
    assert sorted(sizes) == sorted(n for name in kept.split() for n in numbers[name])
    if wanted:
        y.sum().backward()
    assert [name for name, t in p.items() if t.grad is not None] == wanted.split()


def test_training_saves_no_activation() -> None:
    p = layer("gelu", "x", "up", "down", "up_bias", "down_bias")
    p["x"] = torch.cat([p["x"]] * 4).detach().requires_grad_()
    p["residual"] = p["x"].detach()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
    ):
        ops.mlp(**p, impl="blas")  # type: ignore[arg-type]
    assert sorted(sizes) == sorted([24 * 6, 24 * 10, 60, 60])


def test_inputs_are_not_modified() -> None:
    for activation in ACTIVATIONS:
        p = layer(activation, "x", "up", "down")
        before = {name: t.detach().clone() for name, t in p.items()}
        ops.mlp(**p, activation=activation, impl="blas").sum().backward()  # type: ignore[arg-type]
        assert all(torch.equal(before[name], t) for name, t in p.items())


def test_a_cpu_uses_the_library_if_the_weights_are_frozen() -> None:
    def active(*wanted: str) -> str | None:
        p = layer("gelu", *wanted)
        biases = p["up_bias"], p["down_bias"]
        call = MlpCall(p["x"], p["up"], p["down"], None, *biases, "gelu", None)
        return OPERATIONS["mlp"].explain(call).active

    assert active() == active("x") == "blas"
    assert {active(name) for name in ("up", "down", "up_bias", "down_bias")} == {"eager"}


@pytest.mark.parametrize(
    ("change", "grad", "answer"),
    [
        ({}, True, "triton"),
        ({}, False, "triton"),
        ({"rows": 1024}, True, "eager"),
        ({"dtype": torch.float32}, True, "eager"),
        ({"activation": "gelu_tanh"}, True, "triton"),
        ({"activation": "gelu_tanh"}, False, "blas"),
        ({"activation": "gelu_tanh", "rows": 16}, False, "blas"),
        ({"activation": "gelu_tanh", "bias": False}, False, "triton"),
    ],
)
def test_a_gpu_s_automatic_choice(change: dict[str, Any], grad: bool, answer: str) -> None:
    """With meta tensors, so that no GPU is needed."""
    pytest.importorskip("triton")
    rows, dtype = change.get("rows", 16384), change.get("dtype", torch.bfloat16)
    with FakeTensorMode():
        x = torch.empty(rows, 1024, dtype=dtype, device="cuda", requires_grad=grad)
        up = torch.empty(4096, 1024, dtype=dtype, device="cuda")
        bias = torch.empty(4096, dtype=dtype, device="cuda") if change.get("bias", True) else None
        call = MlpCall(x, up, up.T, None, bias, None, change.get("activation", "gelu"), None)
        assert OPERATIONS["mlp"].explain(call).active == answer


def test_runs_on_meta_tensors() -> None:
    p = {name: t.detach().to("meta") for name, t in layer("gelu").items()}
    assert ops.mlp(**p).shape == ops.mlp(**p, impl="blas").shape == p["x"].shape  # type: ignore[arg-type]


def test_gradients_of_gradients() -> None:
    p = layer("gelu", "x")
    y = ops.mlp(**p, impl="eager")  # type: ignore[arg-type]
    (dx,) = torch.autograd.grad(y.sum(), p["x"], create_graph=True)
    dx.sum().backward()
    y = ops.mlp(**p, impl="blas")  # type: ignore[arg-type]
    (again,) = torch.autograd.grad(y.sum(), p["x"], create_graph=True)
    assert torch.equal(again, dx)
    # The saved tensors are frozen weights and the activation's input, whose graph is not recorded.
    with pytest.raises(ArgumentError, match="impl='eager' can"):
        again.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(())}, r"x must be of shape \[..., d\]"),
        ({"activation": "tanh"}, "activation must be one of gelu"),
        ({"activation": "swiglu"}, "the activation swiglu requires a gate"),
        ({"gate": torch.zeros(10, 6)}, "the activation gelu has no gate"),
        ({"up": torch.zeros(10, 5)}, r"up must be of shape \[m, 6\], got \[10, 5\]"),
        ({"down": torch.zeros(10, 6)}, r"down must be of shape \[6, 10\]"),
        ({"up_bias": torch.zeros(6)}, r"up_bias must be of shape \[10\]"),
        ({"down_bias": torch.zeros(10)}, r"down_bias must be of shape \[6\]"),
        ({"down": torch.zeros(6, 10)}, "down must be of dtype torch.float64"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.mlp(**(parameters() | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", ["eager", "blas"])
def test_autocast_supports_float32_parameters(impl: str) -> None:
    p = {name: t.float() for name, t in parameters().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.mlp(p["x"].bfloat16(), **{n: t for n, t in p.items() if n != "x"}, impl=impl)
        assert ops.mlp(**p, residual=p["x"], impl=impl).dtype == torch.float32
        wide = {name: t.double() for name, t in p.items()}
        assert ops.mlp(**wide, impl=impl).dtype == torch.float64
    assert y.dtype == torch.bfloat16


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    p = layer("swiglu", "x")

    def step(x: torch.Tensor) -> torch.Tensor:
        return ops.mlp(**p | {"x": x}, activation="swiglu").square().sum()  # type: ignore[arg-type]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(step(p["x"]), p["x"])
    (result,) = torch.autograd.grad(compiled(p["x"]), p["x"])
    torch.testing.assert_close(result, expected)

"""The feed-forward operation: each activation's formula, gradients, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastgrow import ops
from fastgrow.errors import ArgumentError

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


@pytest.mark.parametrize("activation", FORMULAS)
def test_formula(activation: str) -> None:
    p = parameters()
    hidden = FORMULAS[activation](p["x"] @ p["up"].T + p["up_bias"])
    expected = hidden @ p["down"].T + p["down_bias"]
    y = ops.mlp(**p, activation=activation, residual=p["x"])
    torch.testing.assert_close(y, expected + p["x"])


def test_swiglu() -> None:
    p = parameters()
    gate = p["up"].flip(0)
    gated = p["x"] @ gate.T
    hidden = gated * torch.sigmoid(gated) * (p["x"] @ p["up"].T + p["up_bias"])
    y = ops.mlp(**p, gate=gate, activation="swiglu")
    torch.testing.assert_close(y, hidden @ p["down"].T + p["down_bias"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu2", "swiglu"])
def test_gradient(activation: str) -> None:
    p = {name: t.requires_grad_() for name, t in parameters().items()}
    gate = p["up"].detach().flip(0).requires_grad_() if activation == "swiglu" else None

    def run(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, up_bias: Any) -> torch.Tensor:
        return ops.mlp(x, up, down, gate=gate, up_bias=up_bias, activation=activation)

    assert torch.autograd.gradcheck(run, (p["x"], p["up"], p["down"], p["up_bias"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of gelu"),
        ({"activation": "swiglu"}, "gate must be given for swiglu, got None"),
        ({"gate": torch.zeros(10, 6)}, "gate must be None for gelu"),
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


def test_autocast_takes_float32_parameters() -> None:
    p = {name: t.float() for name, t in parameters().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.mlp(p.pop("x").bfloat16(), **p)
    assert y.dtype == torch.bfloat16

"""The feed-forward module: its parameters and its result."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgrow.errors import ArgumentError
from fastgrow.nn import MLP


def test_parameters_are_those_of_linear_layers() -> None:
    shapes = {name: list(t.shape) for name, t in MLP(6, 10).state_dict().items()}
    assert shapes == {
        "up.weight": [10, 6],
        "up.bias": [10],
        "down.weight": [6, 10],
        "down.bias": [6],
    }
    gated = MLP(6, 10, activation="swiglu", bias=False).state_dict()
    assert list(gated) == ["up.weight", "down.weight", "gate.weight"]


def test_equals_a_chain_of_modules() -> None:
    chain = nn.Sequential(nn.Linear(6, 10), nn.GELU("tanh"), nn.Linear(10, 6))
    module = MLP(6, 10, activation="gelu_tanh")
    module.up.load_state_dict(chain[0].state_dict())
    module.down.load_state_dict(chain[2].state_dict())
    x, residual = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    torch.testing.assert_close(module(x), chain(x))
    torch.testing.assert_close(module(x, residual), chain(x) + residual)
    torch.testing.assert_close(module.requires_grad_(False)(x), chain(x))


def test_an_unknown_activation_is_rejected() -> None:
    with pytest.raises(ArgumentError, match=r"MLP: activation must be one of gelu, .*got 'tanh'"):
        MLP(6, 10, activation="tanh")

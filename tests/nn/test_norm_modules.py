"""fastgrow's norm modules compared with torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fastgrow
from fastgrow import use_impl
from fastgrow.errors import ArgumentError
from fastgrow.nn import DecoderConfig
from fastgrow.nn.block import Block
from fastgrow.nn.norm import make_norm

SETTINGS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("LayerNorm", (8,), {}),
    ("LayerNorm", ((4, 8), 1e-3), {}),
    ("LayerNorm", ([8],), {"bias": False}),
    ("LayerNorm", (8, 1e-5, False), {}),
    ("LayerNorm", (8,), {"elementwise_affine": False, "dtype": torch.float64}),
    ("RMSNorm", (8,), {}),
    ("RMSNorm", ((4, 8), 1e-3), {}),
    ("RMSNorm", (8, None, False), {"device": "cpu"}),
    ("RMSNorm", (8,), {"dtype": torch.float64}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), SETTINGS)
def test_agrees_with_torch_s(name: str, args: Any, kwargs: Any) -> None:
    theirs, ours = getattr(nn, name)(*args, **kwargs), getattr(fastgrow.nn, name)(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 8, dtype=kwargs.get("dtype"), requires_grad=True)
    gradient = torch.randn_like(x)
    expected, found = theirs(x), ours(x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *theirs.parameters()]
    grads = torch.autograd.grad(expected, inputs, gradient)
    for a, b in zip(
        torch.autograd.grad(found, [x, *ours.parameters()], gradient), grads, strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "args", "kwargs"), SETTINGS)
def test_a_residual_is_added_first_and_the_sum_is_returned(
    name: str, args: Any, kwargs: Any
) -> None:
    norm = getattr(fastgrow.nn, name)(*args, **kwargs)
    x, residual = torch.randn(2, 3, 4, 8, dtype=kwargs.get("dtype"))
    y, total = norm(x, residual=residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, norm(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rms_norm_without_eps_uses_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.full((1, 8), 1e-4, dtype=dtype)
    for impl in ("eager", "aten"):
        with use_impl(impl):
            found = fastgrow.nn.RMSNorm(8, dtype=dtype)(x)
        torch.testing.assert_close(found, nn.RMSNorm(8, dtype=dtype)(x))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_wrong_shape_is_named(name: str) -> None:
    norm = getattr(fastgrow.nn, name)((4, 8), elementwise_affine=False)
    with pytest.raises(ArgumentError, match=r"input must be of shape \[..., 4, 8\], got \[2, 8, 4"):
        norm(torch.zeros(2, 8, 4))
    with pytest.raises(ArgumentError, match="residual must be of shape"):
        norm(torch.zeros(2, 4, 8), torch.zeros(4, 8))


def test_the_decoder_s_norms_keep_their_eps() -> None:
    assert make_norm("layer_norm", 8).eps == 1e-5
    assert make_norm("rms_norm", 8).eps == 1e-6


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_block_that_adds_in_its_norm_is_bitwise_equal_to_one_that_adds_before(norm: str) -> None:
    block = Block(DecoderConfig(vocab_size=8, d_model=32, n_head=2, norm=norm))  # type: ignore[arg-type]
    block.initialise(0.2, 1)
    x = torch.randn(2, 5, 32, requires_grad=True)
    added = x + block.attention(block.attention_norm(x))
    expected = added + block.mlp(block.mlp_norm(added))
    assert torch.equal(block(x), expected)
    gradient = torch.randn_like(x)
    inputs = [x, *block.parameters()]
    found = torch.autograd.grad(block(x), inputs, gradient)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, gradient), strict=True):
        assert torch.equal(a, b)


def test_modules_are_copied_and_compiled() -> None:
    norm = copy.deepcopy(fastgrow.nn.LayerNorm((4, 8)))
    x = torch.randn(3, 4, 8)
    torch.compiler.reset()
    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    y, total = compiled(x, x)
    assert torch.equal(y, norm(x, x)[0])
    assert torch.equal(total, x + x)

"""LoRALinear: shares and freezes a layer, starts with its output, merges into a linear layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastgrow.errors import ConfigError
from fastgrow.nn import LoRALinear


def wrapped(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> LoRALinear:
    generator = torch.Generator().manual_seed(0)
    layer = LoRALinear(
        nn.Linear(24, 16, bias, dtype=dtype), 4, 8.0, generator=generator, dtype=torch.float32
    )
    with torch.no_grad():
        layer.lora_B.normal_(std=0.1, generator=generator)
    return layer


def test_starts_as_the_layer_it_wraps_and_shares_its_parameters() -> None:
    linear = nn.Linear(24, 16)
    layer = LoRALinear(linear, 4)
    x = torch.randn(3, 24)
    assert torch.equal(layer(x), linear(x))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    bound = 1 / math.sqrt(24)
    assert 0.8 * bound < layer.lora_A.abs().max() <= bound
    assert not layer.lora_B.any()


def test_state_dict_has_the_linear_layer_s_names() -> None:
    layer = wrapped()
    state = layer.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "weight": (16, 24),
        "bias": (16,),
        "lora_A": (4, 24),
        "lora_B": (16, 4),
    }
    twin = LoRALinear(nn.Linear(24, 16), 4, 8.0)
    twin.load_state_dict(state)
    x = torch.randn(3, 24)
    assert torch.equal(twin(x), layer(x))
    assert "bias" not in wrapped(bias=False).state_dict()


def test_training_updates_only_the_correction() -> None:
    layer = wrapped()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(5, 24)).square().sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    changed = {n for n, t in layer.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"lora_A", "lora_B"}


@pytest.mark.parametrize("bias", [True, False])
def test_merged_layer_computes_the_same(bias: bool) -> None:
    layer = wrapped(bias=bias)
    merged = layer.merge()
    assert type(merged.linear) is nn.Linear
    assert (merged.drift, merged.relative_drift) == (0.0, 0.0)
    x = torch.randn(5, 24)
    torch.testing.assert_close(merged.linear(x), layer(x), rtol=1e-5, atol=1e-6)
    assert merged.linear.weight.data_ptr() != layer.weight.data_ptr()
    assert all(p.requires_grad for p in merged.linear.parameters())


def test_merging_into_half_precision_reports_the_rounding_error() -> None:
    layer = wrapped(torch.bfloat16)
    correction = layer.scale * (layer.lora_B @ layer.lora_A).detach()
    total = layer.weight.float() + correction
    merged = layer.merge()
    assert merged.linear.weight.dtype == torch.bfloat16
    lost = merged.linear.weight.detach().float() - total
    assert merged.drift == pytest.approx(float(lost.abs().max()))
    share = lost.square().mean().sqrt() / correction.square().mean().sqrt()
    assert merged.relative_drift == pytest.approx(float(share))
    # Rounding to nearest: half a unit in the last place of the largest weight.
    assert 0 < merged.drift <= float(total.abs().max()) * 2**-8
    with torch.no_grad():
        layer.lora_B.zero_()
    assert layer.merge().relative_drift == 0.0


def test_moves_and_casts_like_a_module() -> None:
    layer = wrapped().to(torch.bfloat16)
    assert layer.lora_A.dtype == torch.bfloat16
    assert layer(torch.randn(3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert str(layer) == ("LoRALinear(in_features=24, out_features=16, rank=4, alpha=8, bias=True)")


@pytest.mark.parametrize("rank", [0, 17])
def test_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ConfigError, match=rf"rank must be in \[1, 16\], got {rank}"):
        LoRALinear(nn.Linear(24, 16), rank)

"""Hugging Face's `kernels` loads the layers and binds them to modules of other projects."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastgrow import ops
from fastgrow.interop import KERNEL_LAYERS
from fastgrow.interop.kernel_layers import layers

kernels = pytest.importorskip("kernels")

LAYERS = ("LayerNorm", "RMSNorm", "SwiGLUMLP")


class RMSNorm(nn.Module):
    """The same computation as LlamaRMSNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + torch.randn(dim) / 10)
        self.variance_epsilon = 1e-5

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden_states.dtype)


class MLP(nn.Module):
    """The same computation as LlamaMLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, 3 * dim, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(3 * dim, dim, bias=False)
        self.act_fn: nn.Module = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Norm(nn.LayerNorm):
    """A separate class, so that torch's class stays unmarked."""


for cls, name in ((RMSNorm, "RMSNorm"), (MLP, "SwiGLUMLP"), (Norm, "LayerNorm")):
    kernels.replace_kernel_forward_from_hub(cls, name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()

    def counting(name: str) -> Any:
        run = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            counted[name] += 1
            return run(*args, **kwargs)

        return call

    for name in ("layer_norm", "rms_norm", "mlp"):
        monkeypatch.setattr(ops, name, counting(name))
    return counted


def kernelized(model: nn.Module) -> nn.Module:
    repositories = {
        name: {"cpu": kernels.LocalLayerRepository(KERNEL_LAYERS, layer_name=name)}
        for name in LAYERS
    }
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping(repositories, inherit_mapping=False):
        return kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)


def test_kernelize(calls: Counter[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RMSNorm(16), MLP(16), Norm(16), RMSNorm(16))
    x = torch.randn(2, 5, 16)
    expected = model(x)
    before = torch.autograd.grad(expected.square().sum(), tuple(model.parameters()))
    kernelized(model)
    y = model(x)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)
    after = torch.autograd.grad(y.square().sum(), tuple(model.parameters()))
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert calls == {"rms_norm": 2, "mlp": 1, "layer_norm": 1}


def test_unsupported_layers_are_computed_without_fusion(calls: Counter[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16)
    other, hooked, watched = MLP(16), MLP(16), MLP(16)
    other.act_fn = nn.GELU()
    hooked.up_proj.register_forward_hook(lambda layer, args, y: 2 * y)
    watched.act_fn.register_forward_hook(lambda layer, args, y: 2 * y)
    for model in (other, hooked, watched):
        expected = model(x)
        torch.testing.assert_close(kernelized(model)(x), expected, atol=0, rtol=0)
    norm = kernelized(Norm(16))
    half = x.bfloat16()
    assert torch.equal(norm(half), F.layer_norm(half, (16,), norm.weight, norm.bias))
    assert not calls
    for norm in (Norm(16, elementwise_affine=False), Norm((3, 16)), Norm(16, bias=False)):
        calls.clear()
        expected = norm(x)
        torch.testing.assert_close(kernelized(norm)(x), expected, atol=1e-6, rtol=0)
        # The last one, which only has no bias, uses the operation.
        assert calls["layer_norm"] == (norm.weight is not None and norm.weight.dim() == 1)
    calls.clear()
    wide = kernelized(RMSNorm(16))
    assert wide(half).dtype == torch.float32
    assert calls["rms_norm"] == 1


def test_llama(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from hf_models import IDS, assert_close, build
    from hf_models import LAYERS as BLOCKS
    from transformers.models.llama import modeling_llama as llama

    model = build("llama")
    expected = model(IDS).logits
    for cls, name in ((llama.LlamaRMSNorm, "RMSNorm"), (llama.LlamaMLP, "SwiGLUMLP")):
        # Set by `replace_kernel_forward_from_hub`; undone after the test.
        monkeypatch.setattr(cls, "kernel_layer_name", name, raising=False)
        monkeypatch.setattr(cls, "kernel_condition", None, raising=False)
    assert_close(kernelized(model)(IDS).logits, expected)
    assert calls == {"rms_norm": 2 * BLOCKS + 1, "mlp": BLOCKS}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pure(name: str) -> None:
    layer = getattr(layers, name)
    assert layer.__init__ is nn.Module.__init__
    extra = set(dir(layer)) - set(dir(nn.Module))
    assert extra == {"can_torch_compile", "has_backward"}

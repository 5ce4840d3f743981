"""Layers for Hugging Face's `kernels`.

A layer here has only a `forward`: `kernelize` binds it to modules of another class, whose
attributes it uses. The docstring of each layer lists these attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.interop.functions import cast_rms_norm, is_plain

_SILU = ("SiLU", "SiLUActivation")


class LayerNorm(nn.Module):
    """For `torch.nn.LayerNorm`: normalized_shape, weight, bias, eps.

    Calls `ops.layer_norm` for a norm over the last axis whose weight has the dtype of the input,
    else torch's function.
    """

    can_torch_compile = True
    has_backward = True

    if TYPE_CHECKING:
        normalized_shape: tuple[int, ...]
        weight: Tensor | None
        bias: Tensor | None
        eps: float

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight is None or weight.dim() != 1 or weight.dtype != input.dtype:
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return ops.layer_norm(input, weight, bias, eps=self.eps)


class RMSNorm(nn.Module):
    """For `LlamaRMSNorm` and its copies: weight, variance_epsilon."""

    can_torch_compile = True
    has_backward = True

    if TYPE_CHECKING:
        weight: Tensor
        variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return cast_rms_norm(hidden_states, self.weight, self.variance_epsilon)


class SwiGLUMLP(nn.Module):
    """For `LlamaMLP` and its copies: gate_proj, up_proj, down_proj, act_fn."""

    can_torch_compile = True
    has_backward = True

    if TYPE_CHECKING:
        gate_proj: nn.Linear
        up_proj: nn.Linear
        down_proj: nn.Linear
        act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        plain = all(is_plain(layer, nn.Linear) and layer.bias is None for layer in (gate, up, down))
        silu = type(self.act_fn).__name__ in _SILU and is_plain(self.act_fn, type(self.act_fn))
        if not plain or not silu:
            return down(self.act_fn(gate(x)) * up(x))
        return ops.mlp(x, up.weight, down.weight, gate=gate.weight, activation="swiglu")

"""Llama."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import modeling_llama

from fastgrow import ops
from fastgrow.interop.functions import cast_rms_norm, is_plain
from fastgrow.interop.hf.causal_lm import without_logits
from fastgrow.interop.hf.family import Family, Replacement
from fastgrow.interop.hf.parts import activation_name, obstacle_in_layers

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class FastLlamaRMSNorm(modeling_llama.LlamaRMSNorm):
    """LlamaRMSNorm that calls `ops.rms_norm`; a wider weight widens the result, as before."""

    original_name = "LlamaRMSNorm"

    def forward(self, hidden_states: Tensor) -> Tensor:
        return cast_rms_norm(hidden_states, self.weight, self.variance_epsilon)


class FastLlamaMLP(modeling_llama.LlamaMLP):
    """LlamaMLP that calls `ops.mlp`."""

    original_name = "LlamaMLP"

    def forward(self, x: Tensor) -> Tensor:
        plain = all(is_plain(getattr(self, name), nn.Linear) for name in _PROJECTIONS)
        if not plain or activation_name(self.act_fn) != "swiglu":
            return super().forward(x)
        return ops.mlp(
            x,
            self.up_proj.weight,
            self.down_proj.weight,
            gate=self.gate_proj.weight,
            activation="swiglu",
        )


class LlamaForCausalLM(modeling_llama.LlamaForCausalLM):
    """The original with a loss without logits. Same name, since models are saved with it."""

    forward = without_logits(modeling_llama.LlamaForCausalLM.forward, CausalLMOutputWithPast)


def _mlp_obstacle(module: Any) -> str:
    obstacle = obstacle_in_layers(module, type(module.act_fn), ("act_fn",))
    if not obstacle and activation_name(module.act_fn) != "swiglu":
        return f"its activation is {type(module.act_fn).__name__}, not SiLU"
    if module.gate_proj.bias is not None:
        return "its projections have biases"
    return obstacle or obstacle_in_layers(module, nn.Linear, _PROJECTIONS)


FAMILY = Family(
    attention=modeling_llama.LlamaAttention,
    attention_dropout="attention_dropout",
    replacements=(
        Replacement("norm", modeling_llama.LlamaRMSNorm, FastLlamaRMSNorm, "ops.rms_norm"),
        Replacement("mlp", modeling_llama.LlamaMLP, FastLlamaMLP, "ops.mlp", _mlp_obstacle),
        Replacement(
            "loss", modeling_llama.LlamaForCausalLM, LlamaForCausalLM, "ops.linear_cross_entropy"
        ),
    ),
    not_replaced=(
        ("rotary", modeling_llama.LlamaRotaryEmbedding, "keys are rotated before they are cached"),
    ),
)

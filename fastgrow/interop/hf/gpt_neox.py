"""GPT-NeoX."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt_neox import modeling_gpt_neox

from fastgrow import ops
from fastgrow.interop.functions import is_plain
from fastgrow.interop.hf.causal_lm import without_logits
from fastgrow.interop.hf.family import Family, Replacement
from fastgrow.interop.hf.parts import LAYER_NORM, activation_name, obstacle_in_layers

_PROJECTIONS = ("dense_h_to_4h", "dense_4h_to_h")


class FastGPTNeoXMLP(modeling_gpt_neox.GPTNeoXMLP):
    """GPTNeoXMLP that calls `ops.mlp`."""

    original_name = "GPTNeoXMLP"

    def forward(self, hidden_states: Tensor) -> Tensor:
        up, down = self.dense_h_to_4h, self.dense_4h_to_h
        activation = activation_name(self.act)
        if activation is None or not (is_plain(up, nn.Linear) and is_plain(down, nn.Linear)):
            return super().forward(hidden_states)
        return ops.mlp(
            hidden_states,
            up.weight,
            down.weight,
            up_bias=up.bias,
            down_bias=down.bias,
            activation=activation,
        )


class GPTNeoXForCausalLM(modeling_gpt_neox.GPTNeoXForCausalLM):
    """The original with a loss without logits. Same name, since models are saved with it."""

    forward = without_logits(modeling_gpt_neox.GPTNeoXForCausalLM.forward, CausalLMOutputWithPast)


def _mlp_obstacle(module: Any) -> str:
    obstacle = obstacle_in_layers(module, type(module.act), ("act",))
    if not obstacle and activation_name(module.act) in (None, "swiglu"):
        return f"ops.mlp does not support its activation, {type(module.act).__name__}"
    return obstacle or obstacle_in_layers(module, nn.Linear, _PROJECTIONS)


FAMILY = Family(
    attention=modeling_gpt_neox.GPTNeoXAttention,
    attention_dropout="attention_dropout",
    replacements=(
        LAYER_NORM,
        Replacement("mlp", modeling_gpt_neox.GPTNeoXMLP, FastGPTNeoXMLP, "ops.mlp", _mlp_obstacle),
        Replacement(
            "loss",
            modeling_gpt_neox.GPTNeoXForCausalLM,
            GPTNeoXForCausalLM,
            "ops.linear_cross_entropy",
        ),
    ),
    not_replaced=(
        (
            "rotary",
            modeling_gpt_neox.GPTNeoXRotaryEmbedding,
            "keys are rotated before they are cached",
        ),
    ),
)

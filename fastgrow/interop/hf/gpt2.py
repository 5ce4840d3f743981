"""GPT-2, whose linear layers (Conv1D) store their weights as [in, out]."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.models.gpt2 import modeling_gpt2
from transformers.pytorch_utils import Conv1D

from fastgrow import ops
from fastgrow.interop.functions import is_plain
from fastgrow.interop.hf.causal_lm import without_logits
from fastgrow.interop.hf.family import Family, Replacement
from fastgrow.interop.hf.parts import LAYER_NORM, activation_name, obstacle_in_layers


class FastGPT2MLP(modeling_gpt2.GPT2MLP):
    """GPT2MLP that calls `ops.mlp` with transposed views of the weights."""

    original_name = "GPT2MLP"

    def forward(self, hidden_states: Tensor) -> Tensor:
        up, down = self.c_fc, self.c_proj
        activation = activation_name(self.act)
        if activation is None or not (is_plain(up, Conv1D) and is_plain(down, Conv1D)):
            return super().forward(hidden_states)
        y = ops.mlp(
            hidden_states,
            up.weight.T,
            down.weight.T,
            up_bias=up.bias,
            down_bias=down.bias,
            activation=activation,
        )
        return self.dropout(y)


class GPT2LMHeadModel(modeling_gpt2.GPT2LMHeadModel):
    """The original with a loss without logits. Same name, since models are saved with it."""

    forward = without_logits(
        modeling_gpt2.GPT2LMHeadModel.forward, CausalLMOutputWithCrossAttentions
    )


def _mlp_obstacle(module: Any) -> str:
    obstacle = obstacle_in_layers(module, type(module.act), ("act",))
    if not obstacle and activation_name(module.act) in (None, "swiglu"):
        return f"ops.mlp does not support its activation, {type(module.act).__name__}"
    return obstacle or obstacle_in_layers(module, Conv1D, ("c_fc", "c_proj"))


def _attention_obstacle(model: Any) -> str:
    if model.config.reorder_and_upcast_attn and model.config._attn_implementation == "eager":
        return "its scores are computed in float32 (reorder_and_upcast_attn)"
    return ""


FAMILY = Family(
    attention=modeling_gpt2.GPT2Attention,
    attention_dropout="attn_pdrop",
    replacements=(
        LAYER_NORM,
        Replacement("mlp", modeling_gpt2.GPT2MLP, FastGPT2MLP, "ops.mlp", _mlp_obstacle),
        Replacement(
            "loss", modeling_gpt2.GPT2LMHeadModel, GPT2LMHeadModel, "ops.linear_cross_entropy"
        ),
    ),
    attention_obstacle=_attention_obstacle,
)

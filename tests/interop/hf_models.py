"""Tiny random models of the families that `patch` supports, and input batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

KINDS = ("gpt2", "gpt_neox", "llama")
VOCABULARY, LAYERS = 61, 2
IDS = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
# The second row is padded at its start.
PADDED = torch.ones_like(IDS)
PADDED[1, :5] = 0


def build(kind: str, **changes: Any) -> Any:
    """A model without dropout, in evaluation mode; Llama has 2 key heads for 4 query heads."""
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        size = {"n_embd": 32, "n_head": 4, "n_layer": LAYERS, "n_positions": 64}
        model: nn.Module = GPT2LMHeadModel(GPT2Config(**tokens | none | size | changes))
    else:
        size = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": LAYERS,
            "max_position_embeddings": 64,
        }
        if kind == "gpt_neox":
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**tokens | size | changes))
        else:
            size["num_key_value_heads"] = 2
            model = LlamaForCausalLM(LlamaConfig(**tokens | size | changes))
    # Biases and norms are initialised to zero and one, where a mistake would have no effect.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 64 units in the last place of the largest value: some ten roundings per layer."""
    ulp = torch.finfo(expected.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, atol=64 * ulp, rtol=0)

"""A patched model on the attention kernels: with the strides and rules that transformers passes."""

from __future__ import annotations

import pytest
import torch
from harness import DEVICE

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import fastgrow as fg


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    tokens = {"vocab_size": 31, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=1, **tokens, **none))
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**size, **heads, **tokens))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_left_padded_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Under the interpreter the kernels run on a CPU.
    from fastgrow.interop.hf import attention

    monkeypatch.setattr(attention, "uses_starts", lambda device: True)
    ids = torch.arange(2 * 9, device=DEVICE).view(2, 9) + 1
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    labels = ids.masked_fill(mask == 0, -100)
    model = build(kind).to(DEVICE)
    results = []
    for patched in (False, True):
        if patched:
            fg.patch(model)
        model.zero_grad()
        with fg.use_impl("attention=triton" if patched else "attention=eager"):
            out = model(ids, attention_mask=mask, labels=labels)
        out.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([out.logits[mask.bool()].detach(), *gradients])
    assert len(results[0]) == len(results[1])
    # float32 with exact products: 1e-5 of the largest value, as for the kernels themselves.
    for got, expected in zip(results[1], results[0], strict=True):
        bound = 1e-5 * expected.abs().max().item() + 1e-7
        torch.testing.assert_close(got, expected, atol=bound, rtol=0)

"""A GPT-2 of transformers, patched and trained in bf16: its losses are the unpatched CPU's."""

from __future__ import annotations

import pytest
import torch
from against_cpu import assert_follows

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel

import fastgrow as fg

# On a CPU it is; it is small.
pytestmark = pytest.mark.filterwarnings("ignore:.*is several times slower")

STEPS, VOCABULARY, CPU = 20, 96, torch.device("cpu")


def train(
    device: torch.device, *, in_bf16: bool, patched: bool = False, loss: bool = False
) -> list[float]:
    """The losses of all steps, on text in which some tokens follow others."""
    torch.manual_seed(0)
    # The dropouts would draw other numbers on each device.
    still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_head=2, n_layer=2, **ends, **still)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases are initialised with zero, which would not show whether they are used.
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(device)
    if patched:
        report = fg.patch(model, loss=loss)
        assert {one.part for one in report.treated if one.state == "swapped"} >= {
            *("attention", "norm", "mlp"),
            *(("loss",) if loss else ()),
        }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        steps = torch.randint(1, 4, (4, 48), generator=generator)
        ids = (steps.cumsum(1) % VOCABULARY).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            step_loss = model(ids, labels=ids).loss
        step_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss.detach())
    return torch.stack(losses).tolist()


@pytest.mark.parametrize("loss", [False, True], ids=["", "with its loss"])
def test_twenty_steps(loss: bool, device: torch.device) -> None:
    truth = train(CPU, in_bf16=False)
    assert truth[-1] < 0.95 * truth[0], "nothing is learnt that could go wrong"
    found = train(device, in_bf16=True, patched=True, loss=loss)
    assert_follows(found, truth, train(CPU, in_bf16=True))

"""On a CPU a patched model's training step costs what the plain one's does."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from hf_models import VOCABULARY, build

import fastgrow as fg

IDS = torch.randint(1, VOCABULARY, (2, 256), generator=torch.Generator().manual_seed(0))
LEFT = torch.ones_like(IDS)
LEFT[0, :60] = 0
SIZE = {
    "gpt2": {"n_embd": 256, "n_head": 8, "n_layer": 4, "n_positions": 256},
    "llama": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
    },
}


def step_seconds(model: Any, mask: torch.Tensor | None) -> float:
    """Processor time of a forward and backward, so that other processes do not count."""
    model.zero_grad(set_to_none=True)
    started = time.process_time()
    model(IDS, attention_mask=mask, labels=IDS).loss.backward()
    return time.process_time() - started


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "left-padded"])
def test_at_most_five_percent(kind: str, mask: torch.Tensor | None) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = build(kind, max_position_embeddings=256, **SIZE[kind]).train()
        patched = copy.deepcopy(plain)
        fg.patch(patched)
        times: list[tuple[float, float]] = []
        for _ in range(13):
            times.append((step_seconds(plain, mask), step_seconds(patched, mask)))
    finally:
        torch.set_num_threads(threads)
    before, after = (min(column) for column in zip(*times[1:], strict=True))
    print(
        f"{kind}: {before * 1e3:.0f} ms plain, {after * 1e3:.0f} ms patched: {after / before:.3f}"
    )
    assert after <= 1.05 * before

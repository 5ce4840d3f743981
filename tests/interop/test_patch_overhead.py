"""On a CPU a patched model's training step runs no more operations than the plain one's.

`python -m benchmarks.limits` takes the time.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from counted_operations import operations

pytest.importorskip("transformers")

from hf_models import IDS, PADDED, build

import fastgrow as fg


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "left-padded"])
def test_a_step_runs_no_more_operations(kind: str, mask: torch.Tensor | None) -> None:
    plain = build(kind).train()
    patched = copy.deepcopy(plain)
    fg.patch(patched)

    def step(model: Any) -> None:
        model(IDS, attention_mask=mask, labels=IDS).loss.backward()

    before, after = (operations(lambda of=model: step(of)) for model in (plain, patched))
    assert after.total() <= before.total(), after - before

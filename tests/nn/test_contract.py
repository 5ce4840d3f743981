"""A growing decoder with torch's checkpointing, export and determinism."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from growing_model import batch, descend, gradients, growing_model
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import fastgrow
from fastgrow.nn import Decoder
from fastgrow.nn.block import Block
from fastgrow.ops import RopeTable

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class Checkpointed(nn.Module):
    """A block that saves only its input, or also its matrix products, for the backward pass."""

    def __init__(self, block: Block, selective: bool) -> None:
        super().__init__()
        self.block, self.selective = block, selective
        self.decisions: list[CheckpointPolicy] = []

    def policy(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        save = op in PRODUCTS
        decision = CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE
        self.decisions.append(decision)
        return decision

    def forward(self, x: Tensor, rope: RopeTable | None = None, cache: None = None) -> Tensor:
        settings: dict[str, Any] = {}
        if self.selective:
            settings["context_fn"] = functools.partial(
                create_selective_checkpoint_contexts, self.policy
            )
        return checkpoint(self.block, x, rope, use_reentrant=False, **settings)


def plain_gradients() -> list[Tensor]:
    model = growing_model()
    model.loss(*batch()).backward()
    found = gradients(model)
    assert {name.split(".")[0] for name in found} == {"blocks", "final_norm", "lm_head"}
    assert {name.split(".")[1] for name in found if name.startswith("blocks")} == {"2"}
    return list(found.values())


@pytest.mark.parametrize("selective", [False, True])
def test_checkpointing_the_active_block(selective: bool) -> None:
    model = growing_model()
    passes: list[None] = []
    active = model.blocks[2]
    assert isinstance(active, Block)
    active.attention.register_forward_hook(lambda *_: passes.append(None))
    wrapped = Checkpointed(active, selective)
    model.blocks[2] = wrapped
    model.loss(*batch()).backward()
    # Once for the loss, once more for the gradients.
    assert len(passes) == 2
    assert len(set(wrapped.decisions)) == (2 if selective else 0)
    torch.testing.assert_close(list(gradients(model).values()), plain_gradients(), rtol=0, atol=0)


def test_checkpointing_the_whole_loss() -> None:
    model = growing_model()
    checkpoint(model.loss, *batch(), use_reentrant=False).backward()
    torch.testing.assert_close(list(gradients(model).values()), plain_gradients(), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_export_with_a_free_length(attention: str) -> None:
    model = growing_model().eval()
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=24)
    with fastgrow.use_impl(f"attention={attention}"):
        program = torch.export.export(
            model, (batch()[0],), dynamic_shapes={"ids": {0: rows, 1: length}}, strict=False
        )
        targets = [str(node.target) for node in program.graph.nodes]
        assert any("scaled_dot_product" in t for t in targets) == (attention == "sdpa")
        for ids in (batch(4, 17)[0], batch(2, 24)[0], batch(3, 5)[0]):
            torch.testing.assert_close(program.module()(ids), model(ids))


@pytest.fixture
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def trained(model: Decoder) -> dict[str, Tensor]:
    model.loss(*batch()).backward()
    descend(model)
    return dict(model.named_parameters())


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize(("embedding", "first_active"), [("frozen", 2), ("trainable", 0)])
def test_deterministic_step(embedding: str, first_active: int) -> None:
    start = dict(growing_model(embedding, first_active).named_parameters())
    once, twice = (trained(growing_model(embedding, first_active)) for _ in range(2))
    for name, parameter in once.items():
        assert torch.equal(parameter, twice[name]), name
        assert torch.equal(parameter, start[name]) != parameter.requires_grad, name

"""Checkpointed and compiled blocks: the same gradients, less memory, two graphs for many stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.memory import peak_bytes
from fastgrow.nn import Block, Decoder, DecoderConfig
from fastgrow.training import TrainConfig, activations
from fastgrow.training.activations import block_forwards

IDS = torch.arange(2 * 32).reshape(2, 32) % 50


def make_model(n_layer: int, n_frozen: int = 0) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=50, d_model=32, n_layer=n_layer, n_head=2, max_seq_len=32)
    model = Decoder(config, table=torch.randn(50, 32))
    model.blocks[:n_frozen].requires_grad_(False)
    return model


def step(model: Decoder) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model.loss(IDS, IDS).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointed_gradients_are_the_same_bits_for_less_memory() -> None:
    model = make_model(6, n_frozen=2)
    plain, usual = step(model), peak_bytes(lambda: step(model), torch.device("cpu"))
    with block_forwards(model, checkpoint_activations=True):
        again, less = step(model), peak_bytes(lambda: step(model), torch.device("cpu"))
    assert plain.keys() == again.keys()
    assert not [name for name in plain if name.startswith(("blocks.0", "blocks.1"))]
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert less < 0.6 * usual


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """How often each block has run, by its identity."""
    counted: dict[int, int] = {}
    forward = Block.forward

    def counting(self: Block, *arguments: object) -> torch.Tensor:
        counted[id(self)] = counted.get(id(self), 0) + 1
        return forward(self, *arguments)

    monkeypatch.setattr(Block, "forward", counting)
    return counted


def test_only_active_blocks_run_twice_and_none_in_an_evaluation(runs: dict[int, int]) -> None:
    model = make_model(4, n_frozen=2)
    with block_forwards(model, checkpoint_activations=True):
        step(model)
        assert [runs[id(block)] for block in model.blocks] == [1, 1, 2, 2]
        runs.clear()
        # A frozen block above an active one passes a gradient down, and is still not recomputed.
        model.blocks[3].requires_grad_(False)
        step(model)
        assert [runs[id(block)] for block in model.blocks] == [1, 1, 2, 1]
        runs.clear()
        with torch.no_grad():
            model.loss(IDS, IDS)
        model.eval()
        step(model)
        assert [runs[id(block)] for block in model.blocks] == [2, 2, 2, 2]


def test_the_model_is_restored_afterwards() -> None:
    model = make_model(2)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        block_forwards(model, checkpoint_activations=True),
    ):
        raise RuntimeError("on purpose")
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_a_copy_of_a_block_runs_itself(runs: dict[int, int]) -> None:
    model = make_model(1)
    with block_forwards(model, checkpoint_activations=True):
        duplicate = copy.deepcopy(model.blocks[0])
        duplicate(model.embedding(IDS), model.rope(32))
    assert runs == {id(duplicate): 1}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that dynamo passes to the compiler, which runs them unchanged."""
    captured: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        captured.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(activations, "BACKEND", backend)
    yield captured
    torch._dynamo.reset()


def grow_through(model: Decoder, stages: int) -> None:
    """A step in each stage of one block; frozen blocks run without autograd."""
    for _ in range(stages):
        model.requires_grad_(False)
        n = model.n_layer
        model.append_blocks(1)
        for part in (model.blocks[-1], model.final_norm, model.lm_head):
            part.requires_grad_(True)
        with block_forwards(model, compile=True):
            with torch.no_grad():
                x = model.trunk(IDS, n)
            model.loss_from(x, n, IDS).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        model.zero_grad(set_to_none=True)


def test_two_graphs_serve_twelve_stages(graphs: list[torch.fx.GraphModule]) -> None:
    grow_through(make_model(0), 12)
    assert len(graphs) == 2


def test_a_recompile_limit_raises_instead_of_running_eager(graphs, monkeypatch) -> None:
    monkeypatch.setattr(activations, "RECOMPILE_LIMIT", 1)
    with pytest.raises(Exception, match="recompile_limit"):
        grow_through(make_model(0), 2)


@pytest.mark.slow
def test_compiled_blocks_learn_as_plain_ones_do() -> None:
    torch._dynamo.reset()
    model = make_model(3, n_frozen=1)
    plain = step(model)
    for checkpointing in (False, True):
        with block_forwards(model, compile=True, checkpoint_activations=checkpointing):
            compiled = step(model)
        assert plain.keys() == compiled.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_a_run_keeps_its_identity_unless_it_compiles() -> None:
    usual = TrainConfig().identity()
    assert "compile" not in usual
    assert TrainConfig(checkpoint_activations=True).identity() == usual
    assert TrainConfig(compile=True).identity() == {**usual, "compile": True}


def test_models_without_blocks_are_unchanged() -> None:
    model = nn.Linear(2, 2)
    with block_forwards(model, checkpoint_activations=True, compile=True):
        assert model(torch.zeros(1, 2)).shape == (1, 2)
